"""Workarounds for faults and gaps of DeepSpeed and transformers, each with the upstream issue or what was
observed.

Observed with DeepSpeed 0.19 and transformers 4.57. Imports no torch: the driver reads this before a worker
does. When a library is updated, try to delete an entry: its test says whether it is still needed. Gaps of
DeepSpeed's universal checkpoints are closed in `train.checkpoint.checkpoint_conversion`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

UNUSED = ("mlflow", "sklearn", "torchvision")
"""Optional imports of others: DeepSpeed's autotuner, transformers' assisted generation and its image
processors."""


def set_environment(device: str) -> None:
    """Set the environment variables that DeepSpeed reads when it is imported. `device` is `cpu` or `cuda`."""
    if device == "cpu":
        # observed: with a GPU present, DeepSpeed would take it although training runs on the CPU
        os.environ["DS_ACCELERATOR"] = "cpu"
    # observed: an extension is built with the `ninja` on PATH, and a venv that is not activated has none
    # there
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # observed: importing torch._inductor starts a pool of compiler processes, which training does not use
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def import_lean(device: str) -> None:
    """Import DeepSpeed and transformers without `UNUSED`. Other code can import those afterwards.

    Half the CPU time of the plain imports and the first engine (`tests/benchmarks/train/start.py`); a worker
    spends it before its first step and at every restart. Upstream: huggingface/transformers#26308, closed
    without lazy imports here. transformers remembers what it did not find, so this is for processes that only
    train.
    """
    set_environment(device)
    import torch

    with _hide_modules(UNUSED):
        import deepspeed
        import transformers  # noqa: F401
    # observed: DeepSpeed asks every optimizer whether it is Muon, and that module compiles its kernels when
    # imported
    compile_, torch.compile = torch.compile, _no_compile  # type: ignore[assignment]
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        torch.compile = compile_


def disable_shared_memory_transport() -> None:
    """Keep gloo as the CPU transport.

    DeepSpeed compiles its own on first use, and a build that was killed blocks the next one for ever, in
    `torch.utils.file_baton.wait` (deepspeedai/DeepSpeedExamples#302).
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def release_engine(engine: Any) -> None:
    """Free an engine and its model, as far as nobody else holds them. The engine must not be used again.

    `destroy` leaves memory in use (deepspeedai/DeepSpeed#7204). Observed: every ZeRO-3 engine stays
    referenced by a module stack that is never emptied and by an `lru_cache` on a method of the parameter
    coordinator.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    modules = {id(module) for module in engine.module.modules()}
    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if id(module) not in modules]
    for method in vars(PartitionedParameterCoordinator).values():
        # the cached method is behind a decorator that hides it
        for cell in getattr(method, "__closure__", None) or ():
            getattr(cell.cell_contents, "cache_clear", lambda: None)()


def global_grad_norm_before_step(engine: Any) -> float | None:
    """Norm of the global gradient, inside the optimizer's step. None where DeepSpeed computes none.

    Observed: `get_global_grad_norm` is set after the step only. ZeRO 0 has none at all
    (deepspeedai/DeepSpeed#7255).
    """
    norm = getattr(engine.optimizer, "_global_grad_norm", None)
    return None if norm is None else float(norm)


def create_moments(optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
    """Zero moments for AdamW, as its first step would create them.

    Observed: DeepSpeed links its state to the optimizer's moments after the first step, also if that step was
    skipped.
    """
    import torch

    for parameter in parameters:
        if not optimizer.state[parameter]:
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}


def separate_step_counters(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter its own step counter.

    Observed: ZeRO 3 loads a universal checkpoint with one counter for all its groups, and AdamW raises it
    once for each of them, so the bias correction of the second group is that of a later step.
    """
    for state in optimizer.state.values():
        if hasattr(state.get("step"), "clone"):
            state["step"] = state["step"].clone()


def master_weights(engine: Any) -> list[Tensor]:
    """The trained fp32 weights that this rank holds: flat shards under ZeRO, else the parameters.

    DeepSpeed has no public name for the shards; each optimizer class has its own attribute.
    """
    for name in (
        "fp32_partitioned_groups_flat",
        "single_partition_of_fp32_groups",
        "fp32_groups_flat_partition",
    ):
        if hasattr(engine.optimizer, name):
            return list(getattr(engine.optimizer, name))
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def set_master_weight(parameter: nn.Parameter, value: Tensor) -> None:
    """Write a full fp32 value into this rank's share of a trained parameter.

    DeepSpeed's public setters differ by ZeRO stage, and ZeRO 3 takes the padded local share only.
    """
    import torch
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if hasattr(parameter, "ds_tensor"):  # ZeRO 3: equal shares in the order of ranks, the last one padded
        size = parameter.ds_tensor.numel()
        share = value.flatten()[torch.distributed.get_rank() * size :][:size]
        safe_set_local_fp32_param(parameter, torch.nn.functional.pad(share, (0, size - share.numel())))
    elif hasattr(parameter, "_hp_mapping"):  # ZeRO 1 and 2, bf16, fp16
        safe_set_full_fp32_param(parameter, value)
    else:
        parameter.data.copy_(value)


def publish_master_weights(engine: Any) -> None:
    """Round the fp32 weights to the model's own, as after a step. All ranks call this.

    DeepSpeed does so inside its step only. Without ZeRO in fp32 they are the same tensors.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    if engine.optimizer is engine.basic_optimizer:
        return
    sharded = engine.zero_optimization_stage() == 3
    for parameter in engine.module.parameters():
        if not parameter.requires_grad:
            continue
        full = safe_get_full_fp32_param(parameter)
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=sharded):
            parameter.data.copy_(full.view(parameter.shape))


@contextmanager
def _hide_modules(names: tuple[str, ...]) -> Iterator[None]:
    """Make modules that are not loaded yet impossible to import, within the block."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _no_compile(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
    """A stand-in for torch.compile, as function or decorator, that compiles nothing."""
    return function or _no_compile
