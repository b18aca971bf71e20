"""What a training will need: parameters, memory by ZeRO stage, time by stage, storage, smallest cluster.

Everything is computed from the configuration; nothing is run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.shards.errors import UsageError, UserError, choice_hint
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS
from uniavgen.train.planning import (
    PEAK_TFLOPS,
    Memory,
    parameter_counts,
    sample_flops,
    setting_changes,
    smallest_cluster,
    stage_memory,
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
class Gpu:
    """Memory in GiB, dense bf16 peak in TFLOP/s, memory bandwidth in GB/s."""

    name: str
    memory_gib: float
    tflops: float
    bandwidth_gb_s: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100-80g", 79.6, PEAK_TFLOPS["h100"], 3350),
        Gpu("h200", 140.4, PEAK_TFLOPS["h200"], 4800),
        Gpu("a100-80g", 79.3, PEAK_TFLOPS["a100"], 2039),
    )
}
"""From NVIDIA's data sheets (SXM modules); memory as the driver reports it."""


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage on the cluster: time by FLOPs and MFU, and the rate at which it reads data."""

    stage: str
    steps: int
    batch: int
    samples_per_pass: int
    flops_per_sample: float
    step_s: float
    optimizer_s: float
    samples_per_s: float
    days: float
    gpu_hours: float
    read_mb_s: float


def plan_training(
    config: TrainConfig, gpus: int | None, gpu: str, mfu: float | None, corpus: Path | None, clips: int | None
) -> dict[str, Any]:
    """Compute everything as one summary. Raises UserError if a batch cannot be divided among the GPUs."""
    card = find_gpu(gpu)
    workers = config.workers if gpus is None else gpus
    mfu = DEFAULT_MFU if mfu is None else mfu
    if not 0 < mfu <= 1:
        raise UsageError(
            f"MFU is a share of the peak, 0 to 1, got {mfu}", where="--mfu", hint="for example --mfu 0.4"
        )
    data = data_needs(config, corpus, clips)
    memory = {stage.name: memory_table(config, stage, workers) for stage in config.stages}
    costs = [stage_cost(config, stage, workers, card, mfu, data["bytes_per_clip"]) for stage in config.stages]
    smallest = {stage.name: cluster_summary(config, stage, card) for stage in config.stages}
    files = {stage.name: deepspeed_config(config, stage, workers) for stage in config.stages}
    limit = usable(card.memory_gib * GIB)
    fits = {stage.name: stage_memory(config, stage, workers).peak <= limit for stage in config.stages}
    return {
        "command": "plan",
        "cluster": {"gpus": workers, **asdict(card), "mfu": mfu},
        "parameters": parameters_by_stage(config),
        "starts_from": {stage.name: part_sources(config, stage) for stage in config.stages},
        "memory": memory,
        "fits": fits,
        "stages": [asdict(cost) for cost in costs],
        "days": sum(cost.days for cost in costs),
        "gpu_hours": sum(cost.gpu_hours for cost in costs),
        "data": data,
        "smallest_cluster": smallest,
        "deepspeed": files,
    }


def find_gpu(text: str) -> Gpu:
    """A GPU of `GPUS` by name, or one as `MEMORY_GIB,TFLOPS,GB_PER_S`. Raises UsageError otherwise."""
    if text in GPUS:
        return GPUS[text]
    try:
        memory_gib, tflops, bandwidth = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"unknown GPU {text!r}",
            where="--gpu",
            hint=f"{choice_hint(text, GPUS)}; or memory in GiB, dense bf16 TFLOP/s and GB/s, as 24,165,1008",
        ) from None
    if min(memory_gib, tflops, bandwidth) <= 0:
        raise UsageError(f"a GPU's numbers must be above 0, got {text!r}", where="--gpu")
    return Gpu("custom", memory_gib, tflops, bandwidth)


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
    config: TrainConfig, stage: StageConfig, workers: int, card: Gpu, mfu: float, clip_bytes: float
) -> StageCost:
    """Cost of a stage. Step time: FLOPs at `mfu` of the peak, at least one pass over the optimizer states."""
    flops = sample_flops(config, stage)
    trained = stage_parameters(config, stage)[1]
    # 30 bytes per parameter: reads masters, moments and gradient; writes masters, moments and weights
    optimizer_s = 30 * trained / (workers if config.deepspeed.zero_stage else 1) / (card.bandwidth_gb_s * 1e9)
    step_s = max(flops * stage.batch / (workers * card.tflops * 1e12 * mfu), optimizer_s)
    seconds = step_s * stage.steps
    return StageCost(
        stage=stage.name,
        steps=stage.steps,
        batch=stage.batch,
        samples_per_pass=config.micro_batch(stage, workers),
        flops_per_sample=flops,
        step_s=step_s,
        optimizer_s=optimizer_s,
        samples_per_s=stage.batch / step_s,
        days=seconds / DAY_S,
        gpu_hours=seconds * workers / 3600,
        read_mb_s=stage.batch / step_s * clip_bytes / 1e6,
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
