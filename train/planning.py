"""What a stage needs of each worker: parameters, memory, FLOPs, and DeepSpeed settings with which it fits.
Nothing is run.

Memory of states follows the ZeRO paper (arXiv 1910.02054) and DeepSpeed's buffers; the model family counts
activations and FLOPs by formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uniavgen.shards.buckets import WindowBuckets, WindowShape
from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.stream import SampleStream
from uniavgen.train.config import DeepSpeedConfig, StageConfig, TrainConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.stage_stream import data_for, window_flops
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.family import family_of
from uniavgen.train.model.memory import FP32, Activations
from uniavgen.train.model.parts import part_of

ITEM_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a number in the model's dtype."""
BUCKET_NUMBERS = 500_000_000
"""Numbers in the buffer in which ZeRO reduces gradients: DeepSpeed's default, which the trainer keeps."""
MAX_LIVE_PARAMETERS = 1_000_000_000
"""Most parameters that ZeRO-3 holds gathered at once: DeepSpeed's default."""
PEAK_TFLOPS = {
    "h100": 989.4,
    "h200": 989.4,
    "a100": 312.0,
    "l40s": 362.1,
    "4090": 165.2,
    "a10g": 70.0,
    "a10": 125.0,
}
"""Dense bf16 peak by a part of the GPU's name; the first that fits counts (NVIDIA's data sheets, SXM)."""
RESERVED_BYTES, FRAGMENTED_SHARE = 2 * 2**30, 0.05
"""Device memory that training cannot use: libraries and communication, and fragmentation. Heuristic."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker's device, and `host` bytes in its host's memory.

    `activations` is the most that the backward pass keeps, `step` what exists in the optimizer step only:
    gradients and intermediate results. The two never exist at the same time, so `peak` takes the larger one.
    """

    weights: float
    gradients: float
    optimizer: float
    buffers: float
    codecs: float
    activations: float
    step: float
    peak: float
    host: float


def parameter_counts(model: ModelConfig) -> dict[str, int]:
    """Parameters by part of the model; no weights are allocated."""
    return family_of(model).parameter_counts()


def stage_parameters(config: TrainConfig, stage: StageConfig) -> tuple[int, int]:
    """Parameters that the stage has, and how many of them it trains; `trains` counts full parts."""
    parts = family_of(config.model).parts(stage.name)
    counts = {part: count for part, count in parameter_counts(config.model).items() if part in parts}
    trained = {part_of(name) for name in stage.trains} or set(counts)
    return sum(counts.values()), sum(count for part, count in counts.items() if part in trained)


def planned_window(config: TrainConfig, stage: StageConfig) -> DataConfig:
    """The window that planning assumes: of several, the most expensive one."""
    if not config.data.buckets or stage.emilia.shards:
        return config.data
    costs = {shape: window_flops(config, stage, shape) for shape in config.data.buckets}
    return data_for(config.data, max(config.data.buckets, key=lambda shape: costs[shape]))


def stage_shapes(
    config: TrainConfig, stage: StageConfig, window: WindowShape | None = None
) -> list[tuple[float, Any]]:
    """(share of samples, input shapes) over the task mix, without and with reference voice, larger last.

    In `window`, or in the window that planning assumes.
    """
    data = data_for(config.data, window) if window else planned_window(config, stage)
    total = sum(stage.tasks.values())
    voiced = {"never": 0.0, "optional": config.objective.dubbing_reference, "required": 1.0}
    share = sum(weight * voiced[task.spec.reference_voice] for task, weight in stage.tasks.items()) / total
    family = family_of(config.model)
    mixed = [
        (1 - share, family.sample_shapes(data, stage, with_voice=False)),
        (share, family.sample_shapes(data, stage, with_voice=True)),
    ]
    return [(part, shapes) for part, shapes in mixed if part]


def sample_flops(config: TrainConfig, stage: StageConfig, window: WindowShape | None = None) -> float:
    """FLOPs to train on one sample, mean over the task mix: 3 forward passes, without recomputation."""
    family = family_of(config.model)
    shapes_mix = stage_shapes(config, stage, window)
    return 3 * sum(share * family.forward_flops(shapes) for share, shapes in shapes_mix)


def flops_by_step(
    config: TrainConfig, stage: StageConfig, stream: SampleStream | EmiliaStream
) -> Callable[[int], float]:
    """A function from a step to `sample_flops` in the window of that step; buckets have several windows."""
    if not isinstance(stream, SampleStream) or not isinstance(stream.buckets, WindowBuckets):
        flops = sample_flops(config, stage)
        return lambda step: flops
    sampler = stream.sampler
    by_bucket = [sample_flops(config, stage, shape) for shape in stream.buckets.shapes]
    return lambda step: by_bucket[sampler.bucket_at(stream.place.position_at(step, sampler.batch))]


def stage_operations(config: TrainConfig, stage: StageConfig) -> int:
    """Operations that one micro-step of the stage launches."""
    setting = config.deepspeed
    return family_of(config.model).operations(
        stage, half=setting.dtype != "fp32", checkpointing=setting.activation_checkpointing
    )


def stage_activations(config: TrainConfig, stage: StageConfig, samples: int) -> Activations:
    """Activations of a micro-batch of the stage's largest task."""
    _, largest = stage_shapes(config, stage)[-1]
    return family_of(config.model).activations(largest, samples, ITEM_BYTES[config.deepspeed.dtype])


def stage_memory(
    config: TrainConfig,
    stage: StageConfig,
    workers: int,
    *,
    device: str = "cuda",
    codecs: bool = True,
    bucket: int = BUCKET_NUMBERS,
) -> Memory:
    """Memory of one of `workers`. Raises UserError if the batch does not split among them."""
    setting, item = config.deepspeed, ITEM_BYTES[config.deepspeed.dtype]
    held, trained = stage_parameters(config, stage)
    micro = config.micro_batch(stage, workers)
    kept, sharded = stage_activations(config, stage, micro), setting.zero_stage > 0
    shard = trained / (workers if sharded else 1)
    weights = held * item / (workers if setting.zero_stage == 3 else 1)
    gradients = (shard if setting.zero_stage > 1 else trained) * item
    # without ZeRO, fp32 weights are their own master weights; ZeRO makes a flat copy
    optimizer = shard * (3 if sharded or item < FP32 else 2) * FP32
    optimizer += shard * FP32 if config.ema else 0.0
    buffers = bucket * item if sharded else 0.0
    # ZeRO: flat fp32 gradients and two intermediate results of Adam; without ZeRO one, on the CPU of a single
    # tensor only
    step = shard * 3 * FP32 if sharded else gradients + shard * FP32 * ((item < FP32) + (device == "cuda"))
    host = 0.0
    if setting.offload == "cpu" and sharded:
        host, optimizer, step = optimizer + shard * FP32, 0.0, gradients
        if setting.zero_stage == 3:
            host, weights = host + weights, 0.0
    if setting.zero_stage == 3:
        weights += min(held, MAX_LIVE_PARAMETERS) * item
    accumulated = stage.batch > micro * workers or setting.zero_stage > 1
    backward = kept.peak(setting.activation_checkpointing) + gradients
    if not accumulated:
        backward = kept.peak(setting.activation_checkpointing, gradients)
    codec_bytes = _codec_bytes(config, stage) if codecs else 0.0
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=buffers,
        codecs=codec_bytes,
        activations=kept.peak(setting.activation_checkpointing),
        step=step,
        peak=weights + optimizer + buffers + codec_bytes + max(backward, step),
        host=host,
    )


def usable(capacity: float) -> float:
    """Bytes of a device of `capacity` that training can use."""
    return (capacity - RESERVED_BYTES) * (1 - FRAGMENTED_SHARE)


def find_fitting_setting(
    config: TrainConfig, stage: StageConfig, workers: int, limit: float, *, offload: bool = True
) -> DeepSpeedConfig | None:
    """The DeepSpeed setting under `limit` bytes a worker that slows training least; None if none fits.

    First as configured, then smaller micro-batches, checkpointing, higher ZeRO stages, and `offload` to the
    host last.
    """
    try:
        configured, share = config.deepspeed, config.micro_batch(stage, workers)
    except UserError:
        return None
    sizes = [configured.micro_batch, *(size for size in (8, 4, 2, 1) if size < share and not share % size)]
    choices = (
        configured.model_copy(
            update={
                "offload": target,
                "zero_stage": level,
                "activation_checkpointing": checkpointing,
                "micro_batch": size,
            }
        )
        for target in dict.fromkeys((configured.offload, "cpu") if offload else (configured.offload,))
        for level in range(configured.zero_stage, 4)
        for checkpointing in dict.fromkeys((configured.activation_checkpointing, True))
        for size in sizes
    )
    for choice in choices:
        candidate = config.model_copy(update={"deepspeed": choice})
        if stage_memory(candidate, stage, workers).peak <= limit:
            return choice
    return None


def smallest_cluster(
    config: TrainConfig, stage: StageConfig, limit: float, *, offload: bool = True
) -> tuple[int, DeepSpeedConfig] | None:
    """The fewest workers that fit the stage in `limit` bytes each, and their setting.

    The number is a power of two, at most the batch.
    """
    workers = 1
    while workers <= stage.batch:
        setting = find_fitting_setting(config, stage, workers, limit, offload=offload)
        if setting:
            return workers, setting
        workers *= 2
    return None


def setting_changes(before: DeepSpeedConfig, after: DeepSpeedConfig) -> list[str]:
    """The `--set` options that turn one setting into the other."""
    old, new = before.model_dump(), after.model_dump()
    return [
        f"--set train.deepspeed.{name}={str(new[name]).lower()}" for name in new if old[name] != new[name]
    ]


def advise_settings(config: TrainConfig, stage: StageConfig, workers: int, capacity: float) -> str:
    """Advice for a stage that ran out of memory on `workers` devices of `capacity` bytes."""
    planned = stage_memory(config, stage, workers).peak
    text = f"planned {in_gib(planned)} a worker, usable {in_gib(usable(capacity))}"
    # if planning saw no problem, something else uses memory: look for a setting that needs clearly less
    limit = min(usable(capacity), 0.9 * planned)
    setting = find_fitting_setting(config, stage, workers, limit)
    if setting:
        return f"{text}; fits with {' '.join(setting_changes(config.deepspeed, setting))}"
    cluster = smallest_cluster(config, stage, limit)
    if cluster is None:
        return f"{text}; no setting fits: lower train.data.frames, height or width"
    changes = setting_changes(config.deepspeed, cluster[1])
    return f"{text}; fits with {' '.join([f'--set train.workers={cluster[0]}', *changes])}"


def in_gib(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def explain_out_of_memory(
    error: BaseException, config: TrainConfig, stage: StageConfig, device: str
) -> UserError | None:
    """The error of a worker without enough memory, with settings that would fit; None for other errors."""
    text = str(error).lower()
    if (
        "out of memory" not in text
        and "can't allocate memory" not in text
        and not isinstance(error, MemoryError)
    ):
        return None
    capacity = device_memory(device, config.workers)
    return UserError(
        f"stage {stage.name} ran out of memory on a {device} worker",
        where=f"train.stages.{stage.name}",
        hint=advise_settings(config, stage, config.workers, capacity),
        kind="out-of-memory",
    )


def device_memory(device: str, workers: int) -> float:
    """Bytes that one worker can have: its GPU's, or its share of this machine's memory."""
    import os

    import torch

    if device == "cuda":
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / workers


def _codec_bytes(config: TrainConfig, stage: StageConfig) -> float:
    """Bytes of the frozen codecs on every worker's device, in fp32."""
    return config.data.codecs.parameters * FP32 if stage.has_video else 0.0
