"""DeepSpeed: the file it reads, its engine around a model, its state on disk, and whole weights out of its shards."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.errors import UserError
from train.checkpoint import RunFolder
from train.stages import StageConfig, TrainConfig

STATE_TAG = "state"
"""Folder of DeepSpeed's own files within a checkpoint."""


def deepspeed_file(config: TrainConfig, stage: StageConfig, world_size: int) -> dict[str, Any]:
    """The configuration that DeepSpeed reads. AdamW (0.9, 0.999, 1e-8) is the paper's; the schedule is ours to set."""
    given = config.deepspeed
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
        "bf16": {"enabled": given.dtype == "bf16"},
        "steps_per_print": 2**62,
    }


def begin_engine(model: nn.Module, config: TrainConfig, stage: StageConfig, world_size: int, device: str) -> Any:
    """A DeepSpeed engine around the model, over the workers of torch.distributed."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    # where DeepSpeed builds an extension it looks for ninja, which stands beside the interpreter
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # importing it would start a pool of compiler processes, which nothing here uses
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    import deepspeed

    # its shared-memory transport is compiled on first use, and a build that was killed blocks the next one; gloo will do
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    file = deepspeed_file(config, stage, world_size)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trainable, config=file)
    return engine


def grad_norm(engine: Any, known: float) -> float:
    """Norm of the global gradient; called before and after `engine.step`, `known` is what the call before found.

    DeepSpeed tells it after the step, but not for plain fp32 without ZeRO: there it is taken off the gradients before.
    """
    if engine.zero_optimization() or engine.bfloat16_enabled():
        told = engine.get_global_grad_norm()
        return known if told is None else float(told)
    if not engine.is_gradient_accumulation_boundary():
        return known
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else known


def save_state(engine: Any, folder: RunFolder, step: int, state: Mapping[str, Any], keep: int) -> None:
    """Write a checkpoint that appears whole or not at all. All workers call this. Raises UserError where the disk refuses."""
    try:
        if dist.get_rank() == 0:
            folder.begin(step)
        dist.barrier()
        engine.save_checkpoint(str(folder.part(step)), tag=STATE_TAG, save_latest=False)
        dist.barrier()
        if dist.get_rank() == 0:
            folder.commit(step, state, keep)
        dist.barrier()
    except OSError as error:
        raise UserError(
            f"checkpoint {step} cannot be written: {error.strerror or error}",
            where=folder.checkpoints,
            do="free space and run the same command again: it goes on from the checkpoint before",
            kind="save-failed",
        ) from error


def load_state(engine: Any, folder: RunFolder, step: int) -> None:
    """Restore model, optimizer and counters from a checkpoint. Raises UserError where it cannot be read."""
    path = folder.checkpoint(step)
    try:
        loaded, _ = engine.load_checkpoint(str(path), tag=STATE_TAG)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
        loaded, reason = None, str(error).strip().splitlines()[0]
    else:
        reason = "files are missing"
    if loaded is None:
        raise UserError(
            f"the checkpoint cannot be read: {reason}", where=path, do=f"delete {path} to go on from the one before"
        )


def full_weights(engine: Any) -> dict[str, Tensor]:
    """Every weight, whole and in fp32, on the CPU of the first worker ({} elsewhere). All workers call this."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    first, sharded = dist.get_rank() == 0, engine.zero_optimization_stage() == 3
    weights: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        # bf16 weights have fp32 masters, spread over the workers; asking for one is a collective call
        master = safe_get_full_fp32_param(parameter) if engine.bfloat16_enabled() and parameter.requires_grad else None
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
            if first:
                weights[name] = (parameter.data if master is None else master).detach().float().cpu().clone()
    if first:
        weights |= {
            name: buffer.cpu().clone() for name, buffer in engine.module.named_buffers() if name in engine.module.state_dict()
        }
    return weights
