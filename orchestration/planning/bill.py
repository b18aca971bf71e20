"""`uniavgen bill`: core-hours, GPU-hours, storage and price of a data set and its training.

What a kept clip costs is measured on a small corpus of the same kind of videos; training is computed from the
settings, as by `uniavgen plan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CorpusOption, command

if TYPE_CHECKING:
    from uniavgen.ingest.config import PoolsConfig
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.train.config import TrainConfig

CLIPS = 1_300_000
"""Clips of the paper's data set."""
DRAWS, RANGE = 2000, (5.0, 95.0)
"""Resamples of the sources, and the percentiles of the results that are the range."""
FEW_SOURCES = 5
"""Below this number of sources a warning is printed. Heuristic."""
STATE_BYTES = 16
"""Bytes of a checkpoint for each trained parameter: fp32 weight, two moments, and the weight in the model's
dtype, rounded up."""


@dataclass(frozen=True)
class SourceCost:
    """One measured source: kept clips, reserved core and GPU seconds, sizes in bytes."""

    kept: float = 0.0
    core_s: float = 0.0
    gpu_s: float = 0.0
    video_s: float = 0.0
    source_bytes: float = 0.0
    media_bytes: float = 0.0
    cache_bytes: float = 0.0


@dataclass(frozen=True)
class Prices:
    """What an hour of a core, an hour of a GPU and a month of 10^9 bytes cost; `months` of storage."""

    core_hour: float
    gpu_hour: float
    gb_month: float
    months: float


@command
def bill(
    settings: Config,
    corpus: CorpusOption,
    clips: Annotated[
        int, typer.Option("--clips", min=1, help="Kept clips to plan for.", metavar="N")
    ] = CLIPS,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", min=1, help="GPUs of the training; default: train.workers.", metavar="N"),
    ] = None,
    gpu: Annotated[
        str,
        typer.Option("--gpu", help="As in uniavgen plan: a name such as h200, or numbers.", metavar="GPU"),
    ] = "h100",
    mfu: Annotated[
        float | None, typer.Option("--mfu", help="Share of the peak FLOP/s that is reached.", metavar="SHARE")
    ] = None,
    cores: Annotated[int, typer.Option("--cores", min=1, help="Cores of the ingest.", metavar="N")] = 64,
    core_hour: Annotated[float, typer.Option("--core-hour", min=0, help="Price of a core-hour.")] = 0.04,
    gpu_hour: Annotated[float, typer.Option("--gpu-hour", min=0, help="Price of a GPU-hour.")] = 3.0,
    gb_month: Annotated[float, typer.Option("--gb-month", min=0, help="Price of a GB for a month.")] = 0.023,
    months: Annotated[float, typer.Option("--months", min=0, help="Months of storage.")] = 1.0,
) -> dict[str, Any]:
    """Forecast hours, storage and price of a large data set.

    Its training is part of the bill. The corpus is a small ingested and curated sample of the videos: it says
    what a kept clip costs. The default prices are examples; give those of your provider.

    Example: uniavgen bill --corpus data/sample --preset paper --gpus 32 --gpu h200 --gpu-hour 2.5
    """
    from uniavgen.orchestration.planning.training_plan import plan_training
    from uniavgen.shards.corpus.tables import Corpus

    opened = Corpus.open(corpus)
    training = plan_training(settings.train, gpus, gpu, mfu, None, clips)
    measured = source_costs(opened, settings)
    data = scale_to(measured, clips)
    prices = Prices(core_hour, gpu_hour, gb_month, months)
    items = bill_items(data, training, checkpoint_gb(settings.train), prices)
    summary = {
        "command": "bill",
        "corpus": str(opened.root),
        "clips": clips,
        "sources_measured": len(measured),
        "data": data,
        "ingest_days": {name: hours / cores / 24 for name, hours in data["core_h"].items()},
        "training_days": training["days"],
        "prices": asdict(prices),
        "items": items,
        "total": {end: sum(item["cost"][end] for item in items) for end in ("low", "mid", "high")},
    }
    show_bill(summary, cores, training["cluster"])
    return summary


def source_costs(corpus: Corpus, settings: Config) -> list[SourceCost]:
    """Cost and yield of each measured source. Raises UserError if no clip of them is kept.

    Decisions say what is kept; without any, the policy of the settings does.
    """
    from uniavgen.orchestration.planning.ingest_forecast import folder_bytes, kept_clips, media_bytes
    from uniavgen.shards.errors import UserError

    decisions = corpus.read("decisions", ["clip_id", "kept"]).to_pylist()
    kept = {row["clip_id"] for row in decisions if row["kept"]}
    if not decisions:
        kept = kept_clips(corpus, settings.curate.policy)
    clips: dict[str, list[str]] = {}
    for row in corpus.read("clips", ["clip_id", "source_id"]).to_pylist():
        clips.setdefault(row["source_id"], []).append(row["clip_id"])
    costs = []
    for row in corpus.read("sources", ["source_id", "bytes", "duration_s", "step_seconds"]).to_pylist():
        of_source = clips.get(row["source_id"], [])
        cpu, gpu = reserved_seconds(dict(row["step_seconds"] or ()), settings.ingest.pools)
        stored = folder_bytes(corpus.root / "measured" / row["source_id"][:2] / row["source_id"])
        costs.append(
            SourceCost(
                kept=sum(clip in kept for clip in of_source),
                core_s=cpu,
                gpu_s=gpu,
                video_s=row["duration_s"] or 0.0,
                source_bytes=row["bytes"] or 0,
                media_bytes=sum(media_bytes(corpus, clip) for clip in of_source),
                cache_bytes=stored,
            )
        )
    if not any(cost.kept for cost in costs):
        raise UserError(
            "no clip of this corpus is kept, so a kept clip has no price",
            where=corpus.root,
            hint="ingest more sources, or name another policy: --set curate.policy=NAME",
        )
    return costs


def reserved_seconds(step_seconds: Mapping[str, float], pools: PoolsConfig) -> tuple[float, float]:
    """Core and GPU seconds of a source: each step's working time, times what its worker reserves."""
    from uniavgen.ingest.measures.registry import STEPS

    pool_of = {step.name: step.pool for step in STEPS}
    gpu_used = any(getattr(pools, name).num_gpus for name in ("speech", "sight"))
    joint = pools.layout == "joint" or (pools.layout == "auto" and not gpu_used)
    cores = gpus = 0.0
    for name, seconds in step_seconds.items():
        pool = pool_of.get(name, "prepare")
        worker = getattr(pools, "joint" if joint and pool in ("speech", "sight") else pool)
        cores += seconds * worker.num_cpus
        gpus += seconds * worker.num_gpus
    return cores, gpus


def scale_to(sources: Sequence[SourceCost], clips: int) -> dict[str, dict[str, float]]:
    """Totals for `clips` kept clips, each with the bootstrap's range over the sources.

    Every quantity is assumed to grow with the kept clips. Keys: `sources`, `video_h`, `core_h`, `gpu_h`,
    `source_gb`, `media_gb`, `cache_gb` (10^9 bytes); values `low`, `mid`, `high`.
    """
    import numpy as np

    table = np.array([[1.0, *asdict(source).values()] for source in sources])  # [sources, 1 + columns]
    drawn = np.random.default_rng(0).integers(0, len(table), (DRAWS, len(table)))
    sums = np.stack([table.sum(axis=0), *table[drawn].sum(axis=1)])
    kept = sums[:, 1]
    usable = sums[kept > 0]  # a resample without a kept clip has no price
    count, kept, core_s, gpu_s, video_s, source, media, cache = usable.T
    totals = {
        "sources": count,
        "video_h": video_s / 3600,
        "core_h": core_s / 3600,
        "gpu_h": gpu_s / 3600,
        "source_gb": source / 1e9,
        "media_gb": media / 1e9,
        "cache_gb": cache / 1e9,
    }
    result = {}
    for name, values in totals.items():
        scaled = values / kept * clips
        low, high = np.percentile(scaled[1:], RANGE) if len(scaled) > 1 else scaled[[0, 0]]
        result[name] = {"low": float(low), "mid": float(scaled[0]), "high": float(high)}
    return result


def checkpoint_gb(config: TrainConfig) -> float:
    """Size of the checkpoints that stay of all stages, and of their final weights, in 10^9 bytes."""
    from uniavgen.train.planning import stage_parameters

    total = 0.0
    for stage in config.stages:
        held, trained = stage_parameters(config, stage)
        weights = held * 4 * (2 if config.ema else 1)
        total += weights + config.checkpoint.keep * (trained * STATE_BYTES + weights)
    return total / 1e9


def bill_items(
    data: Mapping[str, Mapping[str, float]],
    training: Mapping[str, Any],
    checkpoints_gb: float,
    prices: Prices,
) -> list[dict[str, Any]]:
    """The lines of the bill: `item`, `unit`, and `quantity` and `cost` with `low`, `mid` and `high`."""
    month = prices.gb_month * prices.months
    lines: list[tuple[str, str, Mapping[str, float], float]] = [
        ("ingest: cores", "core-h", data["core_h"], prices.core_hour),
        ("ingest: GPUs", "GPU-h", data["gpu_h"], prices.gpu_hour),
    ]
    lines += [
        (f"training: stage {stage['stage']}", "GPU-h", _exact(stage["gpu_hours"]), prices.gpu_hour)
        for stage in training["stages"]
    ]
    lines += [
        ("storage: raw videos", "GB", data["source_gb"], month),
        ("storage: step cache", "GB", data["cache_gb"], month),
        ("storage: clips", "GB", data["media_gb"], month),
        ("storage: shards", "GB", data["media_gb"], month),
        ("storage: cached latents, at most", "GB", _exact(training["data"]["latents_gb"]), month),
        ("storage: checkpoints and weights", "GB", _exact(checkpoints_gb), month),
    ]
    return [
        {
            "item": item,
            "unit": unit,
            "quantity": dict(quantity),
            "cost": {end: value * price for end, value in quantity.items()},
        }
        for item, unit, quantity, price in lines
    ]


def _exact(value: float) -> dict[str, float]:
    return {"low": value, "mid": value, "high": value}


def show_bill(summary: Mapping[str, Any], cores: int, cluster: Mapping[str, Any]) -> None:
    """Print the bill as a table, what it rests on, and how long it takes."""
    from uniavgen.orchestration.output import console

    rows = [
        (item["item"], item["quantity"]["mid"], item["unit"], item["cost"]["mid"], _range(item["cost"]))
        for item in summary["items"]
    ]
    rows.append(("total", None, "", summary["total"]["mid"], _range(summary["total"])))
    title = f"{summary['clips']:,} clips, from {summary['sources_measured']} measured sources"
    console.table(title, ("item", "quantity", "unit", "price", "range"), rows)
    data, days = summary["data"], summary["ingest_days"]
    console.print_line(
        f"{data['sources']['mid']:,.0f} sources with {data['video_h']['mid']:,.0f} h of video; "
        f"ingest {days['mid']:,.1f} days on {cores} cores, training {summary['training_days']:,.1f} days on "
        f"{cluster['gpus']} x {cluster['name']}"
    )
    prices = summary["prices"]
    console.print_line(
        f"prices: core-hour {prices['core_hour']:g}, GPU-hour {prices['gpu_hour']:g}, GB and month "
        f"{prices['gb_month']:g}, {prices['months']:g} months; not contained: download, captions, "
        "evaluation, failed runs"
    )
    if summary["sources_measured"] < FEW_SOURCES:
        console.print_warning("few sources were measured: the ranges are rough")


def _range(values: Mapping[str, float]) -> str:
    return f"{values['low']:,.0f} to {values['high']:,.0f}"
