"""`uniavgen plan`: print what a training will need, before a GPU is rented."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import command

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.train.config import StageConfig, TrainConfig


@command
def plan(
    settings: Config,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="Number of GPUs; default: train.workers.", metavar="N")
    ] = None,
    gpu: Annotated[
        str,
        typer.Option(
            "--gpu",
            help="h100, h200, a100, l40s, 4090, a10, or memory GiB, bf16 TFLOP/s and GB/s, as 24,165,1008.",
            metavar="GPU",
        ),
    ] = "h100",
    mfu: Annotated[
        float | None,
        typer.Option(
            "--mfu",
            help="Model FLOPs utilization: share of peak FLOP/s that is reached; default: 0.4.",
            metavar="SHARE",
        ),
    ] = None,
    usd_per_hour: Annotated[
        float | None,
        typer.Option("--usd-per-hour", min=0, help="Price of one GPU for an hour.", metavar="USD"),
    ] = None,
    corpus: Annotated[
        Path | None, typer.Option("--corpus", help="Corpus whose shards give the clip size.", metavar="DIR")
    ] = None,
    clips: Annotated[
        int | None,
        typer.Option("--clips", min=1, help="Number of clips; default: the corpus's, or 1.3 M.", metavar="N"),
    ] = None,
) -> dict[str, Any]:
    """Estimate memory, time and cost of a training.

    Everything is computed from the settings; nothing is run.

    Example: uniavgen plan --preset paper --gpus 8 --gpu h200 --usd-per-hour 3
    """
    from uniavgen.orchestration.planning.training_plan import plan_training

    summary = plan_training(settings.train, gpus, gpu, mfu, corpus, clips, usd_per_hour)
    show_plan(settings.train, summary)
    return summary


def show_plan(config: TrainConfig, summary: dict[str, Any]) -> None:
    """Print the summary of `plan_training`: the answer first, then tables that explain it."""
    from uniavgen.orchestration.output import console
    from uniavgen.train.starting_weights import describe_sources

    _show_answer(config, summary)
    _show_time(summary)
    _show_memory(config, summary["cluster"])
    _show_parameters(summary["parameters"])
    for stage, sources in summary["starts_from"].items():
        console.print_line(f"stage {stage} starts: {describe_sources(sources)}")
    data = summary["data"]
    source = "measured on the corpus" if data["measured"] else "assumed; --corpus measures it"
    console.print_line(f"data: {data['clips']:,} clips of {data['bytes_per_clip'] / 1e6:.2f} MB ({source})")
    console.print_line(
        f"storage: shards {data['shards_gb']:,.0f} GB; cached latents at most {data['latents_gb']:,.0f} GB "
        f"({config.data.cached.windows} windows per clip)"
    )
    for stage, smallest in summary["smallest_cluster"].items():
        console.print_line(f"smallest cluster for {stage}: {_describe_cluster(smallest['on_device'])}")
        if smallest["with_offload"] != smallest["on_device"]:
            console.print_line(f"  with offload: {_describe_cluster(smallest['with_offload'])}")
    console.print_line("DeepSpeed's configuration of each stage: --json")


def _show_answer(config: TrainConfig, summary: dict[str, Any]) -> None:
    from uniavgen.orchestration.output import console

    cluster, fits = summary["cluster"], summary["fits"]
    gpus = f"{cluster['gpus']} x {cluster['name']}"
    console.print_line(f"{_describe_totals(summary)} on {gpus}", style="bold")
    if summary["with_cached_latents"] and any(stage["step"]["codecs"] for stage in summary["stages"]):
        cached = _describe_totals(summary["with_cached_latents"])
        console.print_line(f"with cached latents (uniavgen cache-latents): {cached}")
    missing = [stage.name for stage in config.stages if not fits[stage.name]]
    if missing:
        console.print_warning(f"does not fit in memory: {', '.join(missing)}; see the tables below")
    else:
        console.print_line("every stage fits in memory as configured")


def _describe_totals(totals: dict[str, Any]) -> str:
    days, price = totals["days"], "" if totals["usd"] is None else f", {totals['usd']:,.0f} USD"
    time = f"{days:.1f} days" if days >= 1 else f"{days * 24:.1f} hours"
    return f"{time}, {totals['gpu_hours']:,.0f} GPU-hours{price}"


def _show_time(summary: dict[str, Any]) -> None:
    """Two tables: time of the stages, and seconds of a step by what it waits for."""
    from uniavgen.orchestration.output import console

    stages = summary["stages"]
    console.table(
        "time",
        ("stage", "steps", "s/step", "waits for", "samples/s", "MFU", "days", "GPU-h"),
        [
            (
                cost["stage"],
                cost["steps"],
                cost["step_s"],
                cost["waits_for"],
                cost["samples_per_s"],
                f"{cost['mfu']:.0%}",
                cost["days"],
                cost["gpu_hours"],
            )
            for cost in stages
        ],
    )
    parts = ("compute", "launches", "codecs", "optimizer", "loader")
    console.table(
        "seconds of a step, by part, and of the whole stage for its checkpoints and start",
        ("stage", "compute", "launches", "codecs", "Adam", "loader", "saves", "start"),
        [
            (cost["stage"], *(cost["step"][part] for part in parts), cost["saving_s"], cost["start_s"])
            for cost in stages
        ],
    )
    cluster = summary["cluster"]
    operations = ", ".join(f"{cost['operations']:,}" for cost in stages)
    reads = ", ".join(f"{cost['read_mb_s']:,.0f}" for cost in stages)
    for line in (
        f"compute: at {cluster['mfu']:.0%} of {cluster['tflops']:g} TFLOP/s",
        f"launches: {operations} operations per micro-step",
        f"loader: one thread beside each GPU; all read {reads} MB/s",
        "not counted: communication between GPUs",
    ):
        console.print_line(line, style="dim")


def _show_parameters(parameters: dict[str, Any]) -> None:
    from uniavgen.orchestration.output import console

    counts = {**parameters["parts"], "total": parameters["total"]}
    rows = [(part, f"{count / 1e6:,.1f} M") for part, count in counts.items()]
    console.table("model", ("part", "parameters"), rows)


def _show_memory(config: TrainConfig, cluster: dict[str, Any]) -> None:
    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.planning.training_plan import GIB
    from uniavgen.train.planning import in_gib, usable

    limit = usable(cluster["memory_gib"] * GIB)
    columns = ("ZeRO", "weights", "grads", "Adam", "other", "activ.", "peak", "ckpt", "fits")
    for stage in config.stages:
        rows = [_memory_row(config, stage, cluster["gpus"], level, limit) for level in range(4)]
        console.table(f"{stage.name}: GiB per GPU, {in_gib(limit)} usable", columns, rows)
    configured = "with" if config.deepspeed.activation_checkpointing else "without"
    for line in (
        "other: communication buffers and codecs; activ.: activations without checkpointing",
        "ckpt: peak with activation checkpointing, which computes activations twice",
        f"configured: ZeRO {config.deepspeed.zero_stage} {configured} checkpointing",
    ):
        console.print_line(line, style="dim")


def _memory_row(
    config: TrainConfig, stage: StageConfig, workers: int, level: int, limit: float
) -> tuple[Any, ...]:
    from uniavgen.orchestration.planning.training_plan import GIB, memory_at

    plain, checkpointed = (memory_at(config, stage, workers, level, on) for on in (False, True))
    parts = (
        plain.weights,
        plain.gradients,
        plain.optimizer,
        plain.buffers + plain.codecs,
        plain.activations,
        plain.peak,
        checkpointed.peak,
    )
    fits = [plain.peak <= limit, checkpointed.peak <= limit]
    verdict = "yes" if all(fits) else "no ckpt" if fits[0] else "ckpt" if fits[1] else "no"
    return str(level), *(round(count / GIB, 1) for count in parts), verdict


def _describe_cluster(smallest: dict[str, Any] | None) -> str:
    from uniavgen.train.planning import in_gib

    if smallest is None:
        return "none fits"
    host = f" and {in_gib(smallest['host'])} of host memory per GPU" if smallest["host"] else ""
    settings = f" with {' '.join(smallest['set'])}" if smallest["set"] else " as configured"
    count = f"{smallest['gpus']} GPU{'s' if smallest['gpus'] > 1 else ''}"
    return f"{count} ({in_gib(smallest['peak'])}{host}){settings}"
