"""DeepSpeed: the file it reads, its engine around a model, and whole weights out of its shards."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from uniavgen.shards.errors import UserError
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.engine.deepspeed_compat import set_environment


def is_plain(zero_stage: int, dtype: str) -> bool:
    """fp32 without ZeRO: every worker holds everything, and DeepSpeed leaves the model to PyTorch's own optimizer."""
    return zero_stage == 0 and dtype == "fp32"


def deepspeed_file(config: TrainConfig, stage: StageConfig, world_size: int) -> dict[str, Any]:
    """The configuration that DeepSpeed reads. AdamW (0.9, 0.999, 1e-8) is the paper's; the schedule is ours to set.

    Raises UserError for fp16 without ZeRO, which has no fp32 masters that could be saved for another number of workers.
    """
    given = config.deepspeed
    if given.dtype == "fp16" and not given.zero_stage:
        raise UserError(
            "fp16 needs ZeRO",
            where="train.deepspeed",
            hint="set train.deepspeed.zero_stage=1",
            kind="bad-zero",
        )
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
        # a plain gradient is clipped by StepGuard, which needs its norm anyway; DeepSpeed does not tell it
        "gradient_clipping": 0.0 if is_plain(given.zero_stage, given.dtype) else stage.grad_clip,
        # PyTorch's own AdamW: DeepSpeed's would be compiled on first use
        "optimizer": {"type": "AdamW", "params": {**adam, "torch_adam": True}},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": given.dtype == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": given.dtype == "fp16"},
        "steps_per_print": 2**62,
    }


def begin_engine(
    model: nn.Module,
    config: TrainConfig,
    stage: StageConfig,
    world_size: int,
    device: str,
    *,
    universal: bool = False,
) -> Any:
    """A DeepSpeed engine around the model, over the workers of torch.distributed.

    `universal`: it will load a checkpoint in DeepSpeed's universal form. Raises UserError where the device cannot compute
    in the dtype asked for.
    """
    set_environment(device)
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    if config.deepspeed.dtype == "fp16" and not get_accelerator().is_fp16_supported():
        raise UserError(
            "this processor does not compute in fp16",
            where="train.deepspeed.dtype",
            hint="use bf16 or fp32",
            kind="no-fp16",
        )
    # its shared-memory transport is compiled on first use, and a build that was killed blocks the next one; gloo will do
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    file = deepspeed_file(config, stage, world_size) | {"checkpoint": {"load_universal": universal}}
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=file)
    if is_plain(config.deepspeed.zero_stage, config.deepspeed.dtype) and world_size == 1:
        # there is no one to share gradients with: spares two copies of all of them
        engine.enable_backward_allreduce = False
    return engine


def release(engine: Any) -> None:
    """Give up an engine for good, so that its memory is free once nobody else holds it; it is not to be used again.

    DeepSpeed keeps the model of every ZeRO-3 engine beyond its `destroy`: in a stack of modules that it never empties, and in
    the cache of what to free after a module.
    """
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    engine.destroy()
    own = {id(module) for module in engine.module.modules()}
    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if id(module) not in own]
    for method in vars(PartitionedParameterCoordinator).values():
        # the cache is of one of its methods, behind a decorator that does not show it
        for cell in getattr(method, "__closure__", None) or ():
            getattr(cell.cell_contents, "cache_clear", lambda: None)()


class StepGuard:
    """Stands before the optimizer: a step that is refused changes neither weights nor moments, on any worker.

    Set `refuse` and `limit` (largest norm of the global gradient before clipping) before `engine.step`; both, like the
    norm itself, must be the same on all workers. `taken` and `norm` tell afterwards whether the step was made, and of what
    gradient. A plain gradient is also clipped here, to a norm of `clip` (0: not at all).
    """

    def __init__(self, engine: Any, clip: float) -> None:
        self.engine, self.clip, self.refuse, self.limit = engine, clip, False, math.inf
        self._norm, self._refused = 0.0, False
        self._optimizer: torch.optim.Optimizer = engine.basic_optimizer
        # where it is not plain, DeepSpeed's own stands around it
        self._plain = engine.optimizer is engine.basic_optimizer
        self._step = self._optimizer.step
        self._optimizer.step = self._guarded

    def open(self, *, refuse: bool, limit: float) -> None:
        """Say what the next step must not exceed."""
        self.refuse, self.limit, self._refused = refuse, limit, False

    @property
    def taken(self) -> bool:
        """Whether the last step changed the weights; DeepSpeed itself leaves out those whose gradient is not finite."""
        return bool(self.engine.was_step_applied()) and not self._refused

    @property
    def norm(self) -> float:
        """Norm of the last step's global gradient before clipping, as DeepSpeed tells it, else as it was found here."""
        told = self.engine.get_global_grad_norm()
        return self._norm if told is None else float(told)

    def _guarded(self, closure: Any = None) -> Any:
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = self._find_norm(parameters)
        if not self.refuse and math.isfinite(norm) and 0 <= norm <= self.limit:
            if self._plain and 0 < self.clip < norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, torch.tensor(norm))
            return self._step(closure)
        self._refused = True
        for parameter in parameters:
            # DeepSpeed takes hold of the moments after the first step, taken or not
            if not self._optimizer.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self._optimizer.state[parameter] = {"step": torch.tensor(0.0), **zeros}
        return None

    def _find_norm(self, parameters: list[Tensor]) -> float:
        """The norm of plain gradients, which are whole on all workers; else as DeepSpeed has just found it: its public name
        for it is set after the step only."""
        if self._plain:
            self._norm = float(
                torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            )
            return self._norm
        found = getattr(self.engine.optimizer, "_global_grad_norm", None)
        return self._norm if found is None else float(found)


def masters(engine: Any) -> list[Tensor]:
    """The fp32 weights in training that this worker holds: flat shards under ZeRO, else the parameters themselves."""
    optimizer = engine.optimizer
    for name in (
        "fp32_partitioned_groups_flat",
        "single_partition_of_fp32_groups",
        "fp32_groups_flat_partition",
    ):
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


def from_all(value: Any) -> list[Any]:
    """What every worker gave, in the order of their ranks. All workers call this."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def agree_on(what: str, own: Any) -> None:
    """Make sure that all workers see the same (`own` as JSON); all of them call this.

    Raises UserError on all of them where one sees something else, as where a node has a folder of its own at the same path.
    """
    seen = from_all(hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest())
    others = [rank for rank, digest_of_rank in enumerate(seen) if digest_of_rank != seen[0]]
    if others:
        raise UserError(
            f"worker {others[0]} sees other {what} than worker 0",
            hint="put them where all nodes see the same",
            kind="not-shared",
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
            name: buffer.cpu().clone()
            for name, buffer in engine.module.named_buffers()
            if name in engine.module.state_dict()
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
