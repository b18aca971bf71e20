"""`uniavgen ingest`: measure videos into a corpus, or measure a few of them and forecast the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CheckFailed, CorpusOption, NameOption, command

if TYPE_CHECKING:
    from uniavgen.ingest.engine.progress import IngestSummary
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.tracking.mlflow_runs import Run
    from uniavgen.shards.corpus.tables import Corpus

FORECAST_SEED = 0
"""Seed of the draw of the sources that a forecast measures."""


@command
def ingest(
    settings: Config,
    sources: Annotated[
        list[str],
        typer.Argument(help="Videos, folders, globs, URLs, or .txt files that list them.", metavar="SRC"),
    ],
    corpus: CorpusOption,
    retry: Annotated[bool, typer.Option("--retry", help="Also try sources that failed before.")] = False,
    step: Annotated[
        str,
        typer.Option("--step", help="With --retry: only sources that failed in this step.", metavar="STEP"),
    ] = "",
    stage: Annotated[str, typer.Option("--stage", help="Old name of --step.", hidden=True)] = "",
    forecast: Annotated[
        int | None,
        typer.Option("--forecast", min=1, help="Measure only N sources and predict the others.", metavar="N"),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 if any source or clip failed.")
    ] = False,
    name: NameOption = "",
) -> dict[str, Any]:
    """Measure raw videos and cut clips into a corpus.

    Each source becomes a row of the table `sources` or `failures`. Sources that are done are skipped, so the
    same command continues an interrupted ingest.

    Example: uniavgen ingest my_videos/ --corpus data/corpus
    """
    from uniavgen.shards.errors import UsageError

    settings.tracking.name = name or settings.tracking.name
    if stage:
        typer.echo("warning: --stage is now called --step", err=True)
        step = step or stage
    if step and not retry:
        raise UsageError("--step selects failures to retry", where="--step", hint="add --retry")
    if forecast is not None and retry:
        raise UsageError(
            "a forecast measures only sources that were not tried before",
            where="--forecast",
            hint="remove --retry",
        )
    if forecast is None:
        summary = ingest_corpus(sources, corpus, settings, retry=retry, step=step)
    else:
        summary = forecast_corpus(sources, corpus, settings, forecast)
    if strict and (summary["failures"] or summary.get("failed_clips")):
        raise CheckFailed(summary)
    return summary


def ingest_corpus(
    sources: list[str], root: Path, settings: Config, *, retry: bool = False, step: str = ""
) -> dict[str, Any]:
    """Measure videos into the corpus; with `retry` also those that failed before (in `step`, if given)."""
    from uniavgen.orchestration.output.ingest_display import show_summary
    from uniavgen.orchestration.planning.ingest_forecast import show_actual
    from uniavgen.shards.corpus.tables import Corpus

    summary, _ = measure_sources(sources, root, settings, retry=retry, step=step)
    corpus = Corpus.open(root)
    show_summary(summary, sources, str(root))
    _record_ingest(corpus, settings, summary)
    return {
        "command": "ingest",
        "corpus": str(corpus.root),
        **summary.to_dict(),
        "forecast": show_actual(corpus, summary),
    }


def forecast_corpus(sources: list[str], root: Path, settings: Config, count: int) -> dict[str, Any]:
    """Measure `count` sources spread over the file sizes, and predict the others from them.

    Raises UserError if every source was tried before.
    """
    from uniavgen.ingest.engine.forecast import choose
    from uniavgen.orchestration.output.ingest_display import show_summary
    from uniavgen.orchestration.planning.ingest_forecast import make_forecast, waiting_sources
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.errors import UserError

    corpus = Corpus.create(root)
    waiting = waiting_sources(sources, corpus, settings)
    if not waiting:
        raise UserError(
            "all these sources were tried before", where=root, hint="add sources that were not measured yet"
        )
    chosen = choose({uri: entry.bytes for uri, entry in waiting.items()}, count, seed=FORECAST_SEED)
    summary, history = measure_sources(chosen, root, settings)
    show_summary(summary, sources, str(root))
    _record_ingest(corpus, settings, summary)
    measured = [waiting.pop(uri) for uri in chosen]
    document = make_forecast(corpus, settings, measured, list(waiting.values()), history)
    return {"command": "ingest", "corpus": str(corpus.root), **summary.to_dict(), "forecast": document}


def measure_sources(
    sources: list[str], root: Path, settings: Config, *, retry: bool = False, step: str = ""
) -> tuple[IngestSummary, list[tuple[float, float]]]:
    """Run ingest with its display. Returns the summary and `IngestDisplay.history`."""
    from uniavgen.ingest.pipeline import ingest
    from uniavgen.orchestration.output.ingest_display import IngestDisplay
    from uniavgen.orchestration.planning.restrictions import ingest_restrictions, warn

    warn(ingest_restrictions(settings.ingest))
    with IngestDisplay() as display:
        summary = ingest(sources, root, settings.ingest, on_progress=display.update, retry=retry, step=step)
    return summary, display.history


def _record_ingest(corpus: Corpus, settings: Config, summary: IngestSummary) -> None:
    from uniavgen.orchestration.tracking.corpus_run import record_in_corpus_run
    from uniavgen.orchestration.tracking.mlflow_runs import flatten

    def log(run: Run) -> None:
        run.params(flatten(settings.ingest.model_dump(by_alias=True), "ingest."))
        keys = {"sources": "uri", "clips": "clip_id", "failures": "uri"}
        metrics: dict[str, float] = {name: len(corpus.read(name, [key])) for name, key in keys.items()}
        if summary.sources:
            metrics |= {"seconds": summary.seconds, "video_seconds": summary.video_seconds}
            metrics |= {f"step_seconds/{name}": step.seconds for name, step in summary.steps.items()}
        run.metrics({f"corpus/{key}": value for key, value in metrics.items()})

    record_in_corpus_run(corpus, settings.tracking, log)
