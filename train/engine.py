"""DeepSpeed: the file it reads, its engine around a model, its state on disk, and whole weights out of its shards."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.errors import UserError
from train.checkpoint import RunFolder, digest, write_tensors
from train.stages import CheckpointConfig, StageConfig, TrainConfig

STATE_TAG = "state"
"""Folder of DeepSpeed's own files within a checkpoint."""
WRITE_FAILED = ("PytorchStreamWriter", "inline_container", "iostream", "I/O error", "No space")
"""Words of PyTorch and safetensors for a file that the disk did not take."""


def deepspeed_file(config: TrainConfig, stage: StageConfig, world_size: int) -> dict[str, Any]:
    """The configuration that DeepSpeed reads. AdamW (0.9, 0.999, 1e-8) is the paper's; the schedule is ours to set.

    Raises UserError for fp16 without ZeRO, which has no fp32 masters that could be saved for another number of workers.
    """
    given = config.deepspeed
    if given.dtype == "fp16" and not given.zero_stage:
        raise UserError("fp16 needs ZeRO", where="train.deepspeed", do="set train.deepspeed.zero_stage=1", kind="bad-zero")
    micro = config.micro_batch(stage, world_size)
    zero: dict[str, Any] = {"stage": given.zero_stage}
    if given.offload == "cpu" and given.zero_stage:
        zero["offload_optimizer"] = {"device": "cpu"}
        if given.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    adam = {"lr": stage.lr, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": stage.weight_decay}
    return {
        "train_batch_size": stage.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": stage.batch // (micro * world_size),
        "gradient_clipping": stage.grad_clip,
        # PyTorch's own AdamW: DeepSpeed's would be compiled on first use
        "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": True}},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": given.dtype == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": given.dtype == "fp16"},
        "steps_per_print": 2**62,
    }


def begin_engine(
    model: nn.Module, config: TrainConfig, stage: StageConfig, world_size: int, device: str, *, universal: bool = False
) -> Any:
    """A DeepSpeed engine around the model, over the workers of torch.distributed.

    `universal`: it will load a checkpoint in DeepSpeed's universal form. Raises UserError where the device cannot compute
    in the dtype asked for.
    """
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # where DeepSpeed builds an extension it looks for ninja, which stands beside the interpreter
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # importing it would start a pool of compiler processes, which nothing here uses
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if config.deepspeed.dtype == "fp16" and not get_accelerator().is_fp16_supported():
        raise UserError(
            "this processor does not compute in fp16", where="train.deepspeed.dtype", do="use bf16 or fp32", kind="no-fp16"
        )
    # its shared-memory transport is compiled on first use, and a build that was killed blocks the next one; gloo will do
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    file = deepspeed_file(config, stage, world_size) | {"checkpoint": {"load_universal": universal}}
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=file)
    return engine


class StepGuard:
    """Stands before the optimizer: a step that is refused changes neither weights nor moments, on any worker.

    Set `refuse` and `limit` (largest norm of the global gradient before clipping) before `engine.step`; both, like the
    norm itself, must be the same on all workers. `taken` tells afterwards whether the step was made.
    """

    def __init__(self, engine: Any) -> None:
        self.engine, self.refuse, self.limit, self.plain_norm = engine, False, math.inf, 0.0
        self._refused = False
        self._optimizer: torch.optim.Optimizer = engine.basic_optimizer
        self._step = self._optimizer.step
        self._optimizer.step = self._guarded

    def open(self, *, refuse: bool, limit: float) -> None:
        """Say what the next step must not exceed."""
        self.refuse, self.limit, self._refused = refuse, limit, False

    @property
    def taken(self) -> bool:
        """Whether the last step changed the weights; DeepSpeed itself leaves out those whose gradient is not finite."""
        return bool(self.engine.was_step_applied()) and not self._refused

    def _guarded(self, closure: Any = None) -> Any:
        norm = self._norm()
        if not self.refuse and math.isfinite(norm) and 0 <= norm <= self.limit:
            return self._step(closure)
        self._refused = True
        for parameter in (p for group in self._optimizer.param_groups for p in group["params"]):
            # DeepSpeed takes hold of the moments after the first step, taken or not
            if not self._optimizer.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
        return None

    def _norm(self) -> float:
        """The norm as DeepSpeed has just found it; its public name for it is set after the step only."""
        found = getattr(self.engine.optimizer, "_global_grad_norm", None)
        return self.plain_norm if found is None else float(found)


def grad_norm(engine: Any, known: float) -> float:
    """Norm of the global gradient; called before and after `engine.step`, `known` is what the call before found.

    DeepSpeed tells it after the step, but not for plain fp32 without ZeRO: there it is taken off the gradients before.
    """
    if engine.zero_optimization() or engine.bfloat16_enabled() or engine.fp16_enabled():
        told = engine.get_global_grad_norm()
        return known if told is None else float(told)
    if not engine.is_gradient_accumulation_boundary():
        return known
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else known


def masters(engine: Any) -> list[Tensor]:
    """The fp32 weights in training that this worker holds: flat shards under ZeRO, else the parameters themselves."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [parameter for parameter in engine.module.parameters() if parameter.requires_grad]


def set_master(parameter: nn.Parameter, value: Tensor) -> None:
    """Put a whole fp32 value where this worker holds its share of a parameter in training."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if hasattr(parameter, "ds_tensor"):  # ZeRO-3: equal shares in the order of ranks, the last one padded
        size = parameter.ds_tensor.numel()
        share = value.flatten()[dist.get_rank() * size :][:size]
        safe_set_local_fp32_param(parameter, torch.nn.functional.pad(share, (0, size - share.numel())))
    elif hasattr(parameter, "_hp_mapping"):
        safe_set_full_fp32_param(parameter, value)
    else:
        parameter.data.copy_(value)


def save_state(
    engine: Any,
    folder: RunFolder,
    step: int,
    state: Mapping[str, Any],
    keep: CheckpointConfig,
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a checkpoint that appears whole or not at all. All workers call this. Raises UserError where the disk refuses.

    `tensors`: safetensors files to stand beside DeepSpeed's, by name; each worker gives those that it is to write.
    """
    try:
        if dist.get_rank() == 0:
            folder.begin(step)
        dist.barrier()
        part = folder.part(step)
        for name, content in (tensors or {}).items():
            write_tensors(part / name, content)
        engine.save_checkpoint(str(part), tag=STATE_TAG, save_latest=False)
        dist.barrier()
        files = shared_digests(part)
        if dist.get_rank() == 0:
            folder.commit(step, state, files, keep)
        dist.barrier()
    except (OSError, RuntimeError) as error:
        if not isinstance(error, OSError) and not any(word in str(error) for word in WRITE_FAILED):
            raise
        raise UserError(
            f"checkpoint {step} cannot be written: {getattr(error, 'strerror', None) or 'the disk is full or was taken away'}",
            where=folder.checkpoints,
            do="free space and run the same command again: it goes on from the checkpoint before",
            kind="save-failed",
        ) from error


def shared_digests(part: Path) -> dict[str, str]:
    """Digest of every file under a folder that all workers see; each worker reads its share. All workers call this."""
    paths = sorted(path for path in part.rglob("*") if path.is_file())
    mine = {str(path.relative_to(part)): digest(path) for path in paths[dist.get_rank() :: dist.get_world_size()]}
    return {name: known for found in from_all(mine) for name, known in found.items()}


def from_all(value: Any) -> list[Any]:
    """What every worker gave, in the order of their ranks. All workers call this."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def load_state(engine: Any, path: Path) -> None:
    """Restore model, optimizer and counters from a checkpoint's folder. Raises UserError where it cannot be read."""
    try:
        loaded, _ = engine.load_checkpoint(str(path), tag=STATE_TAG)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, AssertionError) as error:
        loaded, reason = None, (str(error).strip().splitlines() or [type(error).__name__])[0]
    else:
        reason = "files are missing"
    if loaded is None:
        raise UserError(
            f"the checkpoint cannot be read: {reason}", where=path, do=f"delete {path} to go on from the one before"
        )


def full_weights(engine: Any) -> dict[str, Tensor]:
    """Every weight, whole and in fp32, on the CPU of the first worker ({} elsewhere). All workers call this."""
    first = dist.get_rank() == 0
    weights: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        whole = whole_parameter(engine, parameter)
        if first:
            weights[name] = whole.cpu().clone()
    if first:
        weights |= {
            name: buffer.cpu().clone() for name, buffer in engine.module.named_buffers() if name in engine.module.state_dict()
        }
    return weights


def whole_parameter(engine: Any, parameter: nn.Parameter) -> Tensor:
    """A parameter whole and in fp32, wherever its parts are. All workers call this."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    # masters may be of a finer type than the parameter, and are spread over the workers
    master = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
    if master is not None:
        return master.detach()
    with deepspeed.zero.GatheredParameters([parameter], enabled=engine.zero_optimization_stage() == 3):
        return parameter.detach().float().clone()
