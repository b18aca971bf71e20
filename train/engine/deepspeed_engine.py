"""DeepSpeed: its settings, an engine around a model, the guard before the optimizer, and full weights out of
its shards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from uniavgen.shards.errors import UserError
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.engine.deepspeed_compat import (
    create_moments,
    disable_shared_memory_transport,
    global_grad_norm_before_step,
    set_environment,
)


def is_plain(zero_stage: int, dtype: str) -> bool:
    """fp32 without ZeRO: every rank holds everything, and DeepSpeed uses PyTorch's own optimizer."""
    return zero_stage == 0 and dtype == "fp32"


def adamw_settings(stage: StageConfig) -> dict[str, Any]:
    """AdamW's settings (0.9, 0.999, 1e-8: the paper's); the trainer sets `lr` at every step."""
    return {
        "lr": stage.lr,
        "betas": list(stage.betas),
        "eps": stage.eps,
        "weight_decay": stage.weight_decay,
    }


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], stage: StageConfig) -> list[dict[str, Any]]:
    """The trained parameters in the groups of the optimizer, each with their `names`, and
    whether it is `decayed`.

    With `decayed: matrices` norms, biases and modulation are a second group, which does not decay.
    """
    named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    kept = [] if stage.decayed == "all" else [entry for entry in named if not is_matrix(*entry)]
    names = {name for name, _ in kept}
    decayed = [entry for entry in named if entry[0] not in names]
    return [
        {
            "params": [parameter for _, parameter in entries],
            "names": [name for name, _ in entries],
            "decayed": decays,
            "weight_decay": stage.weight_decay if decays else 0.0,
        }
        for entries, decays in ((decayed, True), (kept, False))
        if entries
    ]


def is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is the weight of a projection, an embedding or a convolution.

    Weights of norms and biases are vectors; offsets of a modulation are a table, as are biases per place.
    """
    return parameter.dim() >= 2 and not name.endswith((".bias", "modulation.table"))


def deepspeed_settings(config: TrainConfig, stage: StageConfig, world_size: int) -> dict[str, Any]:
    """The settings that DeepSpeed reads.

    Raises UserError for fp16 without ZeRO: it has no fp32 weights that could be saved for another number of
    ranks.
    """
    chosen = config.deepspeed
    if chosen.dtype == "fp16" and not chosen.zero_stage:
        raise UserError(
            "fp16 needs ZeRO",
            where="train.deepspeed",
            hint="set train.deepspeed.zero_stage=1",
            kind="bad-zero",
        )
    micro = config.micro_batch(stage, world_size)
    zero: dict[str, Any] = {"stage": chosen.zero_stage}
    if chosen.offload == "cpu" and chosen.zero_stage:
        zero["offload_optimizer"] = {"device": "cpu"}
        if chosen.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_batch_size": stage.batch,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": stage.batch // (micro * world_size),
        # StepGuard clips a plain gradient, because it needs the norm, which DeepSpeed does not report there
        "gradient_clipping": 0.0 if is_plain(chosen.zero_stage, chosen.dtype) else stage.grad_clip,
        # PyTorch's own AdamW: DeepSpeed's would be compiled on first use
        "optimizer": {"type": "AdamW", "params": {**adamw_settings(stage), "torch_adam": True}},
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": chosen.dtype == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": chosen.dtype == "fp16"},
        "steps_per_print": 2**62,
    }


def create_engine(
    model: nn.Module,
    config: TrainConfig,
    stage: StageConfig,
    world_size: int,
    device: str,
    *,
    universal: bool = False,
) -> Any:
    """A DeepSpeed engine around the model, over the ranks of torch.distributed.

    `universal`: it will load a checkpoint in DeepSpeed's universal form. Raises UserError if the device
    cannot compute in the dtype of the configuration.
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
    disable_shared_memory_transport()
    groups = parameter_groups(model.named_parameters(), stage)
    trainable = groups[0]["params"]
    if len(groups) > 1:
        trainable = [{name: group[name] for name in ("params", "weight_decay")} for group in groups]
    settings = deepspeed_settings(config, stage, world_size) | {"checkpoint": {"load_universal": universal}}
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=settings)
    # for `restore_configured_settings`: ZeRO 3 hides the shapes by which the groups were made
    engine.decayed_groups = [group["decayed"] for group in groups]
    if is_plain(config.deepspeed.zero_stage, config.deepspeed.dtype) and world_size == 1:
        # one rank has nothing to reduce: saves two copies of all gradients
        engine.enable_backward_allreduce = False
    return engine


def restore_configured_settings(engine: Any, stage: StageConfig) -> None:
    """Set the optimizer settings of the stage again.

    A loaded checkpoint brings its own: DeepSpeed restores the parameter groups (all layouts) and the gradient
    clipping (ZeRO 1 and 2, bf16, fp16), so a changed configuration would not act.
    """
    settings = adamw_settings(stage)
    for optimizer in (engine.optimizer, engine.basic_optimizer):
        for group, decayed in zip(optimizer.param_groups, engine.decayed_groups, strict=True):
            own = settings | ({} if decayed else {"weight_decay": 0.0})
            group.update({name: value for name, value in own.items() if name in group})
    if hasattr(engine.optimizer, "clip_grad"):
        engine.optimizer.clip_grad = stage.grad_clip


class StepGuard:
    """Skips optimizer steps: a skipped step changes neither weights nor moments, on any rank.

    Call `set_limits` before `engine.step`, with the same values on all ranks. `applied` and `grad_norm` then
    say whether the step was made, and the norm of its global gradient before clipping. A plain gradient is
    also clipped here, to the norm `clip` (0: not at all).
    """

    def __init__(self, engine: Any, clip: float) -> None:
        self.engine, self.clip, self.skip, self.max_norm = engine, clip, False, math.inf
        self._norm, self._skipped = 0.0, False
        self._optimizer: torch.optim.Optimizer = engine.basic_optimizer
        # else DeepSpeed's own optimizer wraps PyTorch's
        self._plain = engine.optimizer is engine.basic_optimizer
        self._step = self._optimizer.step
        self._optimizer.step = self._guarded_step

    def set_limits(self, *, skip: bool, max_norm: float) -> None:
        """Skip the next step in any case, or if the norm of its gradient exceeds `max_norm`."""
        self.skip, self.max_norm, self._skipped = skip, max_norm, False

    @property
    def applied(self) -> bool:
        """Whether the last step changed the weights.

        DeepSpeed itself skips a step whose gradient is not finite.
        """
        return bool(self.engine.was_step_applied()) and not self._skipped

    @property
    def grad_norm(self) -> float:
        """Norm of the last global gradient before clipping, from DeepSpeed or as computed here."""
        norm = self.engine.get_global_grad_norm()
        return self._norm if norm is None else float(norm)

    def _guarded_step(self, closure: Any = None) -> Any:
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = self._compute_norm(parameters)
        if not self.skip and math.isfinite(norm) and 0 <= norm <= self.max_norm:
            if self._plain and 0 < self.clip < norm:
                torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, torch.tensor(norm))
            return self._step(closure)
        self._skipped = True
        create_moments(self._optimizer, parameters)
        return None

    def _compute_norm(self, parameters: list[Tensor]) -> float:
        """The norm of plain gradients (complete on all ranks), or the one that DeepSpeed computed."""
        if self._plain:
            gradients = [p.grad for p in parameters if p.grad is not None]
            self._norm = float(torch.nn.utils.get_total_norm(gradients))
            return self._norm
        norm = global_grad_norm_before_step(self.engine)
        return self._norm if norm is None else norm


def gather_weights(engine: Any) -> dict[str, Tensor]:
    """All weights, complete and in fp32, on the CPU of rank 0 ({} on other ranks). All ranks call this."""
    first = dist.get_rank() == 0
    weights: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        full = gather_parameter(engine, parameter)
        if first:
            weights[name] = full.cpu().clone()
    if first:
        weights |= {
            name: buffer.cpu().clone()
            for name, buffer in engine.module.named_buffers()
            if name in engine.module.state_dict()
        }
    return weights


def gather_parameter(engine: Any, parameter: nn.Parameter) -> Tensor:
    """A complete parameter in fp32, wherever its shards are. All ranks call this."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    # master weights may have a finer dtype than the parameter, and are sharded over ranks
    master = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
    if master is not None:
        return master.detach()
    with deepspeed.zero.GatheredParameters([parameter], enabled=engine.zero_optimization_stage() == 3):
        return parameter.detach().float().clone()
