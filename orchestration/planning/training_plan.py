"""`uniavgen plan`: what a training run will need, before a GPU is rented.

Goes in: a preset's plan and a cluster. Comes out: parameters, memory by ZeRO stage, time and cost of each stage, what the
data needs, the smallest cluster that fits, and DeepSpeed's file. Everything is computed, nothing is run.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration import console
from uniavgen.shards.errors import UsageError, UserError
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS
from uniavgen.train.planning import (
    PEAK_TFLOPS,
    Memory,
    in_gib,
    parameter_counts,
    sample_flops,
    setting_changes,
    smallest_cluster,
    stage_memory,
    stage_parameters,
    usable,
)

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.train.config import StageConfig, TrainConfig

GIB, DAY_S = 2**30, 86_400.0
STATED_MFU = 0.4
"""Share of the dense bf16 peak that a well-tuned step reaches: an aim, to be replaced by what a run measured."""
CLIPS, CLIP_S = 1_300_000, 5.0
"""The paper's number of clips, at the length that talking-head clips have; a corpus tells its own."""
BITS_PER_PIXEL, SOUND_BYTES_PER_S = 0.17, SAMPLE_RATE
"""Measured on 5 s clips of 512 px: 0.3-0.6 MB of H.264 and 0.12 MB of FLAC."""


@dataclass(frozen=True)
class Gpu:
    """A card: memory in GiB, dense bf16 peak in TFLOP/s, memory bandwidth in GB/s."""

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
"""NVIDIA's data sheets (SXM cards); memory as the driver reports it."""


@dataclass(frozen=True)
class StageCost:
    """One stage on the cluster: seconds by the FLOP formula and the MFU, and what its data asks."""

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
    settings: Config, gpus: int | None, gpu: str, mfu: float | None, corpus: Path | None, clips: int | None
) -> dict[str, Any]:
    """`uniavgen plan`: compute, print, and return everything as one summary. Raises UserError where a batch does not split."""
    card, config = gpu_named(gpu), settings.train
    workers = config.workers if gpus is None else gpus
    mfu = STATED_MFU if mfu is None else mfu
    if not 0 < mfu <= 1:
        raise UsageError(
            f"MFU is a share of the peak, got {mfu}", where="--mfu", hint="for example --mfu 0.4"
        )
    data = data_needs(config, corpus, clips)
    memory = {stage.name: memory_table(config, stage, workers) for stage in config.stages}
    costs = [stage_cost(config, stage, workers, card, mfu, data["bytes_per_clip"]) for stage in config.stages]
    smallest = {stage.name: cluster_summary(config, stage, card) for stage in config.stages}
    files = {stage.name: deepspeed_config(config, stage, workers) for stage in config.stages}
    limit = usable(card.memory_gib * GIB)
    fits = {stage.name: stage_memory(config, stage, workers).peak <= limit for stage in config.stages}
    summary = {
        "command": "plan",
        "cluster": {"gpus": workers, **asdict(card), "mfu": mfu},
        "parameters": parameters_by_stage(config),
        "memory": memory,
        "fits": fits,
        "stages": [asdict(cost) for cost in costs],
        "days": sum(cost.days for cost in costs),
        "gpu_hours": sum(cost.gpu_hours for cost in costs),
        "data": data,
        "smallest_cluster": smallest,
        "deepspeed": files,
    }
    show(config, summary, costs, card, workers)
    return summary


def gpu_named(text: str) -> Gpu:
    """A card by name, or `MEMORY_GIB,TFLOPS,GB_PER_S`. Raises UsageError for anything else."""
    if text in GPUS:
        return GPUS[text]
    try:
        memory_gib, tflops, bandwidth = (float(part) for part in text.split(","))
    except ValueError:
        known = ", ".join(GPUS)
        raise UsageError(
            f"unknown GPU {text!r}",
            where="--gpu",
            hint=f"one of: {known}; or memory GiB, dense bf16 TFLOP/s, GB/s: 24,165,1008",
        ) from None
    if min(memory_gib, tflops, bandwidth) <= 0:
        raise UsageError(f"a GPU's figures must be above 0, got {text!r}", where="--gpu")
    return Gpu("custom", memory_gib, tflops, bandwidth)


def parameters_by_stage(config: TrainConfig) -> dict[str, Any]:
    """Parameters by part, in total, and what each stage holds and trains."""
    counts = parameter_counts(config.model)
    stages = {
        stage.name: dict(zip(("holds", "trains"), stage_parameters(config, stage), strict=True))
        for stage in config.stages
    }
    return {"parts": counts, "total": sum(counts.values()), "stages": stages}


def memory_table(config: TrainConfig, stage: StageConfig, workers: int) -> dict[str, dict[str, Any]]:
    """Bytes on a worker by ZeRO stage, each with and without checkpointing."""
    return {
        f"zero-{level}": {
            "with_checkpointing": asdict(_memory(config, stage, workers, level, True)),
            "without_checkpointing": asdict(_memory(config, stage, workers, level, False)),
        }
        for level in range(4)
    }


def stage_cost(
    config: TrainConfig, stage: StageConfig, workers: int, card: Gpu, mfu: float, clip_bytes: float
) -> StageCost:
    """Time by the model's FLOPs at `mfu` of the peak. The optimizer's pass over its states at the card's bandwidth is part of
    the step; where it alone takes longer than the FLOPs say, it is the step."""
    flops = sample_flops(config, stage)
    learns = stage_parameters(config, stage)[1]
    # masters, moments and gradient read, masters, moments and weights written
    optimizer_s = 30 * learns / (workers if config.deepspeed.zero_stage else 1) / (card.bandwidth_gb_s * 1e9)
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
    """Storage of shards, and the most of cached latents: with all windows of every clip, and captions that fill their tokens.

    A clip's size is that of a corpus's own shards, or the stated one. Raises UserError where the corpus has no shards.
    """
    data = config.data
    pixels = data.height * data.width * VIDEO_FPS * CLIP_S
    found, bytes_per_clip = clips or CLIPS, pixels * BITS_PER_PIXEL / 8 + SOUND_BYTES_PER_S * CLIP_S
    if corpus is not None:
        found, bytes_per_clip = _shard_sizes(corpus)
        found = clips or found
    latents, height, width = data.latent_shape
    # a window keeps its clip, both references and the face; a clip keeps its caption once
    window = 48 * (latents + 1) * height * width + latents * height * width // 4
    window += data.codecs.mel.mels * (data.mels + data.reference_mels)
    numbers = data.cached.windows * window + data.caption_tokens * data.codecs.caption_width
    return {
        "clips": found,
        "bytes_per_clip": bytes_per_clip,
        "measured": corpus is not None,
        "shards_gb": found * bytes_per_clip / 1e9,
        "latents_gb": found * numbers * (2 if data.cached.dtype == "float16" else 4) / 1e9,
    }


def cluster_summary(config: TrainConfig, stage: StageConfig, card: Gpu) -> dict[str, Any]:
    """The smallest cluster of such cards that fits the stage, without and with offload to the host."""
    limit = usable(card.memory_gib * GIB)
    summary: dict[str, Any] = {}
    for name, offload in (("on_device", False), ("with_offload", True)):
        found = smallest_cluster(config, stage, limit, offload=offload)
        if found is None:
            summary[name] = None
            continue
        workers, setting = found
        memory = stage_memory(config.model_copy(update={"deepspeed": setting}), stage, workers)
        changes = setting_changes(config.deepspeed, setting)
        summary[name] = {"gpus": workers, "set": changes, "peak": memory.peak, "host": memory.host}
    return summary


def deepspeed_config(config: TrainConfig, stage: StageConfig, workers: int) -> dict[str, Any]:
    """The file that DeepSpeed would read."""
    from uniavgen.train.engine.deepspeed_engine import deepspeed_file

    return deepspeed_file(config, stage, workers)


def show(
    config: TrainConfig, summary: dict[str, Any], costs: list[StageCost], card: Gpu, workers: int
) -> None:
    """Everything as tables for people."""
    parameters, limit = summary["parameters"], usable(card.memory_gib * GIB)
    parts = [(part, f"{count / 1e6:,.1f} M") for part, count in parameters["parts"].items()]
    console.table("model", ("part", "parameters"), [*parts, ("total", f"{parameters['total'] / 1e6:,.1f} M")])
    columns = (
        "ZeRO",
        "weights",
        "gradients",
        "optimizer",
        "other",
        "kept",
        "peak",
        "kept again",
        "peak again",
        "fits",
    )
    for stage in config.stages:
        rows = [_memory_row(config, stage, workers, level, limit) for level in range(4)]
        console.table(
            f"{stage.name}: GiB on one of {workers} x {card.name}, {in_gib(limit)} usable", columns, rows
        )
    console.console.print(
        "other: communication buffers and codecs; kept: activations; again: with checkpointing, which computes them again;"
        f" configured: ZeRO {config.deepspeed.zero_stage} {_how(config.deepspeed.activation_checkpointing)}",
        style="dim",
    )
    console.table(
        f"time on {workers} x {card.name} at {summary['cluster']['mfu']:.0%} of {card.tflops:g} TFLOP/s",
        ("stage", "steps", "batch", "TFLOP/sample", "s/step", "samples/s", "days", "GPU-hours", "data MB/s"),
        [
            (
                c.stage,
                c.steps,
                c.batch,
                c.flops_per_sample / 1e12,
                c.step_s,
                c.samples_per_s,
                c.days,
                c.gpu_hours,
                c.read_mb_s,
            )
            for c in costs
        ],
    )
    data = summary["data"]
    source = "measured on the corpus" if data["measured"] else "stated, name --corpus to measure"
    say = console.console.print
    say(f"in all {summary['days']:.1f} days, {summary['gpu_hours']:,.0f} GPU-hours")
    clips = f"{data['clips']:,} clips of {data['bytes_per_clip'] / 1e6:.2f} MB ({source})"
    latents = (
        f"cached latents at most {data['latents_gb']:,.0f} GB ({config.data.cached.windows} windows a clip)"
    )
    say(f"data: {clips}: shards {data['shards_gb']:,.0f} GB, {latents}")
    for stage_name, found in summary["smallest_cluster"].items():
        here, offloaded = (_cluster_line(found[name]) for name in ("on_device", "with_offload"))
        say(f"smallest cluster for {stage_name}: {here}; offload allowed: {offloaded}")
    say("DeepSpeed's file for the last stage:")
    console.console.print_json(data=summary["deepspeed"][config.stages[-1].name])


def _memory(config: TrainConfig, stage: StageConfig, workers: int, level: int, checkpointing: bool) -> Memory:
    setting = config.deepspeed.model_copy(
        update={"zero_stage": level, "activation_checkpointing": checkpointing}
    )
    return stage_memory(config.model_copy(update={"deepspeed": setting}), stage, workers)


def _memory_row(
    config: TrainConfig, stage: StageConfig, workers: int, level: int, limit: float
) -> tuple[Any, ...]:
    kept, again = (_memory(config, stage, workers, level, checkpointing) for checkpointing in (False, True))
    shares = (
        kept.weights,
        kept.gradients,
        kept.optimizer,
        kept.buffers + kept.codecs,
        kept.activations,
        kept.peak,
    )
    figures = [round(count / GIB, 1) for count in (*shares, again.activations, again.peak)]
    fits = [
        _how(checkpointing) for checkpointing, found in ((False, kept), (True, again)) if found.peak <= limit
    ]
    return str(level), *figures, "both" if len(fits) == 2 else (*fits, "no")[0]


def _how(checkpointing: bool) -> str:
    return "with checkpointing" if checkpointing else "without checkpointing"


def _cluster_line(found: dict[str, Any] | None) -> str:
    if found is None:
        return "none fits"
    host = f" and {in_gib(found['host'])} of host memory a GPU" if found["host"] else ""
    how = f" with {' '.join(found['set'])}" if found["set"] else " as configured"
    return f"{found['gpus']} GPU{'s' if found['gpus'] > 1 else ''} ({in_gib(found['peak'])}{host}){how}"


def _shard_sizes(root: Path) -> tuple[int, float]:
    """Clips in a corpus's shards and bytes of one, as the manifest counts them. Raises UserError where there are none."""
    from uniavgen.shards.tar.manifest import read_manifest

    manifest = read_manifest(root / "shards")
    clips = sum(entry.samples for entry in manifest.entries) if manifest else 0
    if not manifest or not clips:
        raise UserError(
            "the corpus has no shards", where=root / "shards", hint="run: uniavgen shard", kind="no-shards"
        )
    return clips, sum(entry.bytes for entry in manifest.entries) / clips
