"""What a training will need: parameters, memory by ZeRO stage, time by stage, storage, smallest cluster.

Everything is computed from the configuration; nothing is run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.planning.cards import Gpu, find_gpu
from uniavgen.orchestration.planning.step_time import (
    StepTime,
    gpu_machine,
    saving_seconds,
    starting_seconds,
    step_time,
)
from uniavgen.shards.errors import UsageError, UserError
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS
from uniavgen.train.planning import (
    Memory,
    parameter_counts,
    sample_flops,
    setting_changes,
    smallest_cluster,
    stage_memory,
    stage_operations,
    stage_parameters,
    usable,
)
from uniavgen.train.starting_weights import part_sources

if TYPE_CHECKING:
    from uniavgen.train.config import StageConfig, TrainConfig

GIB, DAY_S = 2**30, 86_400.0
DEFAULT_MFU = 0.4
"""Model FLOPs utilization, as share of the dense bf16 peak. A target for a well-tuned step."""
CLIPS, CLIP_S = 1_300_000, 5.0
"""The paper's number of clips, and a typical length of a talking-head clip. Used without a corpus."""
BITS_PER_PIXEL, AUDIO_BYTES_PER_S = 0.17, SAMPLE_RATE
"""Measured on 5 s clips of 512 px: 0.3-0.6 MB of H.264 and 0.12 MB of FLAC."""


@dataclass(frozen=True)
class StageCost:
    """Time and cost of one stage. `step`: seconds of a step by part; `waits_for`: the part that decides."""

    stage: str
    steps: int
    batch: int
    samples_per_pass: int
    cached: bool
    flops_per_sample: float
    operations: int
    step: StepTime
    step_s: float
    waits_for: str
    mfu: float
    samples_per_s: float
    saving_s: float
    start_s: float
    days: float
    gpu_hours: float
    read_mb_s: float


def plan_training(
    config: TrainConfig,
    gpus: int | None,
    gpu: str,
    mfu: float | None,
    corpus: Path | None,
    clips: int | None,
    usd_per_hour: float | None = None,
) -> dict[str, Any]:
    """Compute everything as one summary. Raises UserError if a batch cannot be divided among the GPUs.

    `usd_per_hour`: price of one GPU. Latents count as cached if the configuration requires them.
    """
    card = find_gpu(gpu)
    workers = config.workers if gpus is None else gpus
    mfu = DEFAULT_MFU if mfu is None else mfu
    if not 0 < mfu <= 1:
        raise UsageError(
            f"MFU is a share of the peak, 0 to 1, got {mfu}", where="--mfu", hint="for example --mfu 0.4"
        )
    data, limit = data_needs(config, corpus, clips), usable(card.memory_gib * GIB)

    def costs(cached: bool) -> list[StageCost]:
        size = data["bytes_per_clip"]
        return [stage_cost(config, stage, workers, card, mfu, size, cached=cached) for stage in config.stages]

    required = config.data.latents == "require"
    planned, fits = (
        costs(required),
        {s.name: stage_memory(config, s, workers).peak <= limit for s in config.stages},
    )
    return {
        "command": "plan",
        "cluster": {"gpus": workers, **asdict(card), "mfu": mfu},
        "parameters": parameters_by_stage(config),
        "starts_from": {stage.name: part_sources(config, stage) for stage in config.stages},
        "memory": {stage.name: memory_table(config, stage, workers) for stage in config.stages},
        "fits": fits,
        "stages": [asdict(cost) for cost in planned],
        **totals(planned, usd_per_hour),
        "with_cached_latents": None if required else totals(costs(True), usd_per_hour),
        "data": data,
        "smallest_cluster": {stage.name: cluster_summary(config, stage, card) for stage in config.stages},
        "deepspeed": {stage.name: deepspeed_config(config, stage, workers) for stage in config.stages},
    }


def totals(costs: list[StageCost], usd_per_hour: float | None) -> dict[str, Any]:
    """Days, GPU-hours and, with a price per GPU-hour, US dollars of the stages together."""
    hours = sum(cost.gpu_hours for cost in costs)
    price = None if usd_per_hour is None else hours * usd_per_hour
    return {"days": sum(cost.days for cost in costs), "gpu_hours": hours, "usd": price}


def parameters_by_stage(config: TrainConfig) -> dict[str, Any]:
    """Number of parameters by part and in total, and how many each stage holds and trains."""
    counts = parameter_counts(config.model)
    stages = {
        stage.name: dict(zip(("holds", "trains"), stage_parameters(config, stage), strict=True))
        for stage in config.stages
    }
    return {"parts": counts, "total": sum(counts.values()), "stages": stages}


def memory_table(config: TrainConfig, stage: StageConfig, workers: int) -> dict[str, dict[str, Any]]:
    """Bytes per GPU by ZeRO stage, with and without activation checkpointing."""
    return {
        f"zero-{level}": {
            "with_checkpointing": asdict(memory_at(config, stage, workers, level, True)),
            "without_checkpointing": asdict(memory_at(config, stage, workers, level, False)),
        }
        for level in range(4)
    }


def stage_cost(
    config: TrainConfig,
    stage: StageConfig,
    workers: int,
    gpu: Gpu,
    mfu: float,
    clip_bytes: float,
    *,
    cached: bool,
) -> StageCost:
    """Cost of a stage: its steps as `step_time` counts them, its checkpoints and its start.

    `cached`: whether latents are read. Audio shards are always encoded on line.
    """
    cached = cached and not stage.emilia.shards
    step = step_time(config, stage, workers, gpu_machine(gpu, mfu), cached=cached)
    saving, start = saving_seconds(config, stage), starting_seconds(config, stage, cached=cached)
    seconds, flops = step.total * stage.steps + saving + start, sample_flops(config, stage)
    return StageCost(
        stage=stage.name,
        steps=stage.steps,
        batch=stage.batch,
        samples_per_pass=config.micro_batch(stage, workers),
        cached=cached,
        flops_per_sample=flops,
        operations=stage_operations(config, stage),
        step=step,
        step_s=step.total,
        waits_for=step.waits_for,
        mfu=flops * stage.batch / (workers * gpu.tflops * 1e12 * step.total),
        samples_per_s=stage.batch / step.total,
        saving_s=saving,
        start_s=start,
        days=seconds / DAY_S,
        gpu_hours=seconds * workers / 3600,
        read_mb_s=stage.batch / step.total * clip_bytes / 1e6,
    )


def data_needs(config: TrainConfig, corpus: Path | None, clips: int | None) -> dict[str, Any]:
    """Storage of shards and, as an upper bound, of cached latents (all windows, captions of full length).

    The clip size is measured on the corpus's shards, or assumed without a corpus. Raises UserError if the
    corpus has no shards.
    """
    data = config.data
    pixels = data.height * data.width * VIDEO_FPS * CLIP_S
    count, bytes_per_clip = clips or CLIPS, pixels * BITS_PER_PIXEL / 8 + AUDIO_BYTES_PER_S * CLIP_S
    if corpus is not None:
        in_corpus, bytes_per_clip = _shard_sizes(corpus)
        count = clips or in_corpus
    latents, height, width = data.latent_shape
    # a window stores its latents, both references and the face; a clip stores its caption once
    window = 48 * (latents + 1) * height * width + latents * height * width // 4
    window += data.codecs.mel.mels * (data.mels + data.reference_mels)
    values_per_clip = data.cached.windows * window + data.caption_tokens * data.codecs.caption_width
    return {
        "clips": count,
        "bytes_per_clip": bytes_per_clip,
        "measured": corpus is not None,
        "shards_gb": count * bytes_per_clip / 1e9,
        "latents_gb": count * values_per_clip * (2 if data.cached.dtype == "float16" else 4) / 1e9,
    }


def cluster_summary(config: TrainConfig, stage: StageConfig, card: Gpu) -> dict[str, Any]:
    """The smallest cluster of such GPUs that fits the stage, without and with offload to host memory."""
    limit = usable(card.memory_gib * GIB)
    summary: dict[str, Any] = {}
    for name, offload in (("on_device", False), ("with_offload", True)):
        smallest = smallest_cluster(config, stage, limit, offload=offload)
        if smallest is None:
            summary[name] = None
            continue
        workers, setting = smallest
        memory = stage_memory(config.model_copy(update={"deepspeed": setting}), stage, workers)
        changes = setting_changes(config.deepspeed, setting)
        summary[name] = {"gpus": workers, "set": changes, "peak": memory.peak, "host": memory.host}
    return summary


def deepspeed_config(config: TrainConfig, stage: StageConfig, workers: int) -> dict[str, Any]:
    """The configuration that DeepSpeed would get."""
    from uniavgen.train.engine.deepspeed_engine import deepspeed_settings

    return deepspeed_settings(config, stage, workers)


def memory_at(
    config: TrainConfig, stage: StageConfig, workers: int, level: int, checkpointing: bool
) -> Memory:
    """Memory of one GPU at a ZeRO stage, with or without activation checkpointing."""
    setting = config.deepspeed.model_copy(
        update={"zero_stage": level, "activation_checkpointing": checkpointing}
    )
    return stage_memory(config.model_copy(update={"deepspeed": setting}), stage, workers)


def _shard_sizes(root: Path) -> tuple[int, float]:
    """Number of clips in a corpus's shards and mean bytes of one. Raises UserError if there are none."""
    from uniavgen.shards.tar.manifest import read_manifest

    manifest = read_manifest(root / "shards")
    clips = sum(entry.samples for entry in manifest.entries) if manifest else 0
    if not manifest or not clips:
        raise UserError(
            "the corpus has no shards", where=root / "shards", hint="run: uniavgen shard", kind="no-shards"
        )
    return clips, sum(entry.bytes for entry in manifest.entries) / clips
