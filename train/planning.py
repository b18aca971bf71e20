"""What a stage asks of a worker: parameters, memory, FLOPs, and a setting of DeepSpeed with which it fits.

In: a TrainConfig, one of its stages, a number of workers. Out: bytes and FLOPs, by formula (`train.model.memory`,
`train.model.flops`); nothing is run. Memory of states follows the ZeRO paper (arXiv 1910.02054) and DeepSpeed's buffers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from uniavgen.shards.buckets import WindowBuckets, WindowShape
from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.stream import SampleStream
from uniavgen.train.config import DeepSpeedConfig, StageConfig, TrainConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.stage_stream import data_for, window_flops
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.flops import Shapes, forward_flops
from uniavgen.train.model.memory import FP32, Activations, activations

ITEM = {"bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a number in the model's type."""
BUCKET = 500_000_000
"""Numbers in the buffer in which ZeRO gathers gradients: DeepSpeed's default, which the trainer leaves alone."""
LIVE = 1_000_000_000
"""Most parameters that ZeRO-3 holds gathered at once: DeepSpeed's default."""
PEAK_TFLOPS = {"h100": 989.4, "h200": 989.4, "a100": 312.0}
"""Dense bf16 peak by what a card's name contains (NVIDIA's data sheets, SXM)."""
RESERVE, FRAGMENTED = 2 * 2**30, 0.05
"""A device's memory that is not ours: libraries and communication, and the share lost between blocks. Our choice."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker's device, and `host` bytes beside it.

    `activations` is the most that the backward pass keeps, `step` what is alive in the optimizer step alone: gradients and
    intermediate results. The two are never alive together, so `peak` takes the larger one.
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


@lru_cache(maxsize=8)
def parameter_counts(model: ModelConfig) -> dict[str, int]:
    """Parameters by part of the model, counted on the meta device."""
    import torch

    from uniavgen.train.model.dual_branch import DualBranch

    with torch.device("meta"):
        counts = DualBranch(model).parameter_counts()
    return {part: count for part, count in counts.items() if part != "total"}


def stage_parameters(config: TrainConfig, stage: StageConfig) -> tuple[int, int]:
    """Parameters that the stage holds and those of them that learn; `trains` counts by whole parts."""
    counts = {part: count for part, count in parameter_counts(config.model).items() if part in stage.parts}
    roots = {name.split(".")[0] for name in stage.trains} or set(counts)
    return sum(counts.values()), sum(count for part, count in counts.items() if part in roots)


def planned_window(config: TrainConfig, stage: StageConfig) -> DataConfig:
    """The window that a plan counts with: of several the dearest, whose steps those of the others do not exceed."""
    if not config.data.buckets or stage.emilia.shards:
        return config.data
    return data_for(
        config.data, max(config.data.buckets, key=lambda shape: window_flops(config, stage, shape))
    )


def stage_shapes(
    config: TrainConfig, stage: StageConfig, window: WindowShape | None = None
) -> list[tuple[float, Shapes]]:
    """(share of the samples, shapes) over the stage's task mix, with and without a reference voice: in a window, or in the
    one that a plan counts with."""
    data = data_for(config.data, window) if window else planned_window(config, stage)
    latents, height, width = data.latent_shape
    total = sum(stage.tasks.values())
    voiced = {"never": 0.0, "optional": config.objective.dubbing_reference, "required": 1.0}
    share = sum(weight * voiced[task.spec.reference_voice] for task, weight in stage.tasks.items()) / total

    def shapes(reference: int) -> Shapes:
        return Shapes(
            latents=latents + 1 if stage.has_video else 0,
            height=height,
            width=width,
            mels=data.mels + reference,
            reference_latents=1 if stage.has_video else 0,
            reference_mels=reference,
            caption_tokens=data.caption_tokens,
            speech_tokens=data.speech_bytes,
        )

    mixed = ((1 - share, shapes(0)), (share, shapes(data.reference_mels)))
    return [(part, found) for part, found in mixed if part]


def sample_flops(config: TrainConfig, stage: StageConfig, window: WindowShape | None = None) -> float:
    """FLOPs of training on one sample, mean over the task mix: forward and twice that backward, recomputation left out."""
    mixed = stage_shapes(config, stage, window)
    return 3 * sum(share * forward_flops(config.model, shapes)["total"] for share, shapes in mixed)


def flops_by_step(
    config: TrainConfig, stage: StageConfig, stream: SampleStream | EmiliaStream
) -> Callable[[int], float]:
    """Gives `sample_flops` in the window of a step, which is one of several where the stream has buckets of windows."""
    if not isinstance(stream, SampleStream) or not isinstance(stream.buckets, WindowBuckets):
        whole = sample_flops(config, stage)
        return lambda step: whole
    order = stream.sampler
    each = [sample_flops(config, stage, shape) for shape in stream.buckets.shapes]
    return lambda step: each[order.bucket_at(step * order.batch)]


def stage_activations(config: TrainConfig, stage: StageConfig, samples: int) -> Activations:
    """Activations of a micro-batch of the stage's largest task."""
    shapes = max((shapes for _, shapes in stage_shapes(config, stage)), key=lambda found: found.mels)
    return activations(config.model, shapes, samples, ITEM[config.deepspeed.dtype])


def stage_memory(
    config: TrainConfig,
    stage: StageConfig,
    workers: int,
    *,
    device: str = "cuda",
    codecs: bool = True,
    bucket: int = BUCKET,
) -> Memory:
    """Memory of one of `workers`. Raises UserError where the batch does not split among them."""
    how, item = config.deepspeed, ITEM[config.deepspeed.dtype]
    held, learns = stage_parameters(config, stage)
    micro = config.micro_batch(stage, workers)
    kept, shared = stage_activations(config, stage, micro), how.zero_stage > 0
    spread = learns / (workers if shared else 1)
    weights = held * item / (workers if how.zero_stage == 3 else 1)
    gradients = (spread if how.zero_stage > 1 else learns) * item
    # fp32 weights are their own masters, but for ZeRO's flat copy
    optimizer = spread * (3 if shared or item < FP32 else 2) * FP32
    # the moving average of the weights stands beside the masters
    optimizer += spread * FP32 if config.ema else 0.0
    buffers = bucket * item if shared else 0.0
    # ZeRO's flat gradients in fp32 and two intermediate results of Adam; without ZeRO one, and on the CPU one tensor's at most
    step = spread * 3 * FP32 if shared else gradients + spread * FP32 * ((item < FP32) + (device == "cuda"))
    host = 0.0
    if how.offload == "cpu" and shared:
        host, optimizer, step = optimizer + spread * FP32, 0.0, gradients
        if how.zero_stage == 3:
            host, weights = host + weights, 0.0
    if how.zero_stage == 3:
        weights += min(held, LIVE) * item
    accumulated = stage.batch > micro * workers or how.zero_stage > 1
    backward = kept.peak(how.activation_checkpointing) + gradients
    if not accumulated:
        backward = kept.peak(how.activation_checkpointing, gradients)
    standing = weights + optimizer + buffers + (_codecs(config, stage) if codecs else 0.0)
    return Memory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=buffers,
        codecs=_codecs(config, stage) if codecs else 0.0,
        activations=kept.peak(how.activation_checkpointing),
        step=step,
        peak=standing + max(backward, step),
        host=host,
    )


def usable(capacity: float) -> float:
    """Bytes of a device of `capacity` that a run may count on."""
    return (capacity - RESERVE) * (1 - FRAGMENTED)


def fitting(
    config: TrainConfig, stage: StageConfig, workers: int, limit: float, *, offload: bool = True
) -> DeepSpeedConfig | None:
    """The DeepSpeed setting under which a worker stays below `limit` bytes with the least slowing down; None if none does.

    First as configured, then smaller micro-batches, checkpointing, more of ZeRO, and `offload` to the host last.
    """
    try:
        given, share = config.deepspeed, config.micro_batch(stage, workers)
    except UserError:
        return None
    sizes = [given.micro_batch, *(size for size in (8, 4, 2, 1) if size < share and not share % size)]
    choices = (
        given.model_copy(
            update={
                "offload": place,
                "zero_stage": level,
                "activation_checkpointing": again,
                "micro_batch": size,
            }
        )
        for place in dict.fromkeys((given.offload, "cpu") if offload else (given.offload,))
        for level in range(given.zero_stage, 4)
        for again in dict.fromkeys((given.activation_checkpointing, True))
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
    """The fewest workers (a power of two, at most the batch) that fit the stage into `limit` bytes each, and their setting."""
    workers = 1
    while workers <= stage.batch:
        found = fitting(config, stage, workers, limit, offload=offload)
        if found:
            return workers, found
        workers *= 2
    return None


def setting_changes(before: DeepSpeedConfig, after: DeepSpeedConfig) -> list[str]:
    """What to `--set` to go from one setting to the other."""
    old, new = before.model_dump(), after.model_dump()
    return [
        f"--set train.deepspeed.{name}={str(new[name]).lower()}" for name in new if old[name] != new[name]
    ]


def what_would_fit(config: TrainConfig, stage: StageConfig, workers: int, capacity: float) -> str:
    """Advice for a stage that ran out of memory on `workers` devices of `capacity` bytes."""
    counted = stage_memory(config, stage, workers).peak
    said = f"the plan counts {in_gib(counted)} a worker, {in_gib(usable(capacity))} are usable"
    # where the plan saw no trouble, something else holds memory: look for a setting that needs clearly less
    limit = min(usable(capacity), 0.9 * counted)
    found = fitting(config, stage, workers, limit)
    if found:
        return f"{said}; fits with {' '.join(setting_changes(config.deepspeed, found))}"
    cluster = smallest_cluster(config, stage, limit)
    if cluster is None:
        return f"{said}; no setting fits: lower train.data.frames, height or width"
    more = setting_changes(config.deepspeed, cluster[1])
    return f"{said}; fits with {' '.join([f'--set train.workers={cluster[0]}', *more])}"


def in_gib(count: float) -> str:
    """Bytes as people read them."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def out_of_memory(
    error: BaseException, config: TrainConfig, stage: StageConfig, device: str
) -> UserError | None:
    """A worker's failure told with what would fit, where it is a lack of memory; None where it is something else."""
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
        hint=what_would_fit(config, stage, config.workers, capacity),
        kind="out-of-memory",
    )


def device_memory(device: str, workers: int) -> float:
    """Bytes that one worker can have: its GPU's, or its share of this machine's memory."""
    import os

    import torch

    if device == "cuda":
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / workers


def _codecs(config: TrainConfig, stage: StageConfig) -> float:
    """Bytes of the frozen codecs on every worker's device, in fp32."""
    return config.data.codecs.parameters * FP32 if stage.has_video else 0.0
