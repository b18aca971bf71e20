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
            help="h100-80g, h200, a100-80g, or memory GiB, bf16 TFLOP/s and GB/s, as 24,165,1008.",
            metavar="GPU",
        ),
    ] = "h100-80g",
    mfu: Annotated[
        float | None,
        typer.Option(
            "--mfu",
            help="Model FLOPs utilization: share of peak FLOP/s that is reached; default: 0.4.",
            metavar="SHARE",
        ),
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

    Example: uniavgen plan --preset paper --gpus 8 --gpu h200
    """
    from uniavgen.orchestration.planning.training_plan import plan_training

    summary = plan_training(settings.train, gpus, gpu, mfu, corpus, clips)
    show_plan(settings.train, summary)
    return summary


def show_plan(config: TrainConfig, summary: dict[str, Any]) -> None:
    """Print the summary of `plan_training` as tables."""
    from uniavgen.orchestration.output import console
    from uniavgen.train.starting_weights import describe_sources

    cluster, data = summary["cluster"], summary["data"]
    gpus = f"{cluster['gpus']} x {cluster['name']}"
    _show_parameters(summary["parameters"])
    for stage, sources in summary["starts_from"].items():
        console.print_line(f"stage {stage} starts: {describe_sources(sources)}")
    _show_memory(config, cluster)
    console.table(
        f"time on {gpus} at {cluster['mfu']:.0%} of {cluster['tflops']:g} TFLOP/s",
        ("stage", "steps", "batch", "TFLOP/sample", "s/step", "samples/s", "days", "GPU-hours", "data MB/s"),
        [
            (
                cost["stage"],
                cost["steps"],
                cost["batch"],
                cost["flops_per_sample"] / 1e12,
                cost["step_s"],
                cost["samples_per_s"],
                cost["days"],
                cost["gpu_hours"],
                cost["read_mb_s"],
            )
            for cost in summary["stages"]
        ],
    )
    console.print_line(f"total: {summary['days']:.1f} days, {summary['gpu_hours']:,.0f} GPU-hours")
    source = "measured on the corpus" if data["measured"] else "assumed; --corpus measures it"
    console.print_line(
        f"data: {data['clips']:,} clips of {data['bytes_per_clip'] / 1e6:.2f} MB ({source}); "
        f"shards {data['shards_gb']:,.0f} GB; "
        f"cached latents at most {data['latents_gb']:,.0f} GB ({config.data.cached.windows} windows per clip)"
    )
    for stage, smallest in summary["smallest_cluster"].items():
        on_gpu, offloaded = (_describe_cluster(smallest[name]) for name in ("on_device", "with_offload"))
        console.print_line(f"smallest cluster for {stage}: {on_gpu}; with offload: {offloaded}")
    console.print_line("DeepSpeed configuration of the last stage:")
    console.console.print_json(data=summary["deepspeed"][config.stages[-1].name])


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
    columns = (
        "ZeRO",
        "weights",
        "gradients",
        "optimizer",
        "other",
        "activations",
        "peak",
        "activations, ckpt",
        "peak, ckpt",
        "fits",
    )
    for stage in config.stages:
        rows = [_memory_row(config, stage, cluster["gpus"], level, limit) for level in range(4)]
        title = f"{stage.name}: GiB per GPU on {cluster['gpus']} x {cluster['name']}, {in_gib(limit)} usable"
        console.table(title, columns, rows)
    configured = "with" if config.deepspeed.activation_checkpointing else "without"
    console.print_line(
        "other: communication buffers and codecs; ckpt: with activation checkpointing, which computes "
        f"activations twice; configured: ZeRO {config.deepspeed.zero_stage} {configured} checkpointing",
        style="dim",
    )


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
        checkpointed.activations,
        checkpointed.peak,
    )
    fits = [plain.peak <= limit, checkpointed.peak <= limit]
    verdict = "yes" if all(fits) else "without ckpt" if fits[0] else "with ckpt" if fits[1] else "no"
    return str(level), *(round(count / GIB, 1) for count in parts), verdict


def _describe_cluster(smallest: dict[str, Any] | None) -> str:
    from uniavgen.train.planning import in_gib

    if smallest is None:
        return "none fits"
    host = f" and {in_gib(smallest['host'])} of host memory per GPU" if smallest["host"] else ""
    settings = f" with {' '.join(smallest['set'])}" if smallest["set"] else " as configured"
    count = f"{smallest['gpus']} GPU{'s' if smallest['gpus'] > 1 else ''}"
    return f"{count} ({in_gib(smallest['peak'])}{host}){settings}"
