"""The corpus commands: call the floor that does the work, print what a person can act on, record it in MLflow.

One MLflow run belongs to a corpus; every command on that corpus continues it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from uniavgen.orchestration import console
from uniavgen.orchestration.ingest_display import IngestDisplay, show_summary
from uniavgen.orchestration.planning.ingest_forecast import make_forecast, show_actual, waiting_sources
from uniavgen.orchestration.tracking.mlflow_runs import Run, flat, open_run
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    from uniavgen.curation.policy.decisions import CurationSummary
    from uniavgen.ingest.engine.progress import IngestSummary
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.corpus.tables import Corpus

FORECAST_SEED = 0
"""Draws the sources that a forecast measures: the same for the same sources."""


def corpus_version(corpus: Corpus) -> str:
    """Identity of the corpus as it stands: table versions, the decisions' policy digest, and how often something was
    forgotten (tables are written anew then, and count from 0 again)."""
    from uniavgen.shards.corpus.deletion import read_tombstones

    versions = "-".join(f"{name[:2]}{version}" for name, version in corpus.versions().items())
    digests = corpus.query("SELECT DISTINCT policy_digest FROM decisions ORDER BY 1").to_pylist()
    erasures = read_tombstones(corpus.root).deletions
    forgotten = [f"forgot{erasures}"] if erasures else []
    return "-".join([versions, *(row["policy_digest"][:8] for row in digests), *forgotten])


def corpus_run(corpus: Corpus, settings: Config) -> Run:
    """The MLflow run of this corpus."""
    return open_run(settings.tracking, corpus.root, "corpus build")


def ingest_corpus(
    sources: list[str], root: Path, settings: Config, *, retry: bool = False, stage: str = ""
) -> dict[str, Any]:
    """`uniavgen ingest`: measure videos into the corpus; with `retry` also those that failed before (at step `stage`)."""
    from uniavgen.shards.corpus.tables import Corpus

    summary, _ = measure_sources(sources, root, settings, retry=retry, stage=stage)
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
    """`uniavgen ingest --forecast N`: measure N sources spread over the sizes, predict the rest from them."""
    from uniavgen.ingest.engine.forecast import choose
    from uniavgen.shards.corpus.tables import Corpus

    corpus = Corpus.create(root)
    waiting = waiting_sources(sources, corpus, settings)
    if not waiting:
        hint = "name further sources; a forecast is for what was not measured yet"
        raise UserError("every source named has been tried already", where=root, hint=hint)
    chosen = choose({uri: entry.bytes for uri, entry in waiting.items()}, count, seed=FORECAST_SEED)
    summary, history = measure_sources(chosen, root, settings)
    show_summary(summary, sources, str(root))
    _record_ingest(corpus, settings, summary)
    tried = [waiting.pop(uri) for uri in chosen]
    document = make_forecast(corpus, settings, tried, list(waiting.values()), history)
    return {"command": "ingest", "corpus": str(corpus.root), **summary.to_dict(), "forecast": document}


def measure_sources(
    sources: list[str], root: Path, settings: Config, *, retry: bool = False, stage: str = ""
) -> tuple[IngestSummary, list[tuple[float, float]]]:
    """Run ingest under the live display; the summary, and seconds worked over time (see `IngestDisplay.history`)."""
    from uniavgen.ingest.pipeline import ingest

    with IngestDisplay() as display:
        summary = ingest(sources, root, settings.ingest, on_progress=display.update, retry=retry, step=stage)
    return summary, display.history


def _record_ingest(corpus: Corpus, settings: Config, summary: IngestSummary) -> None:
    with corpus_run(corpus, settings) as run:
        run.params(flat(settings.ingest.model_dump(), "ingest."))
        keys = {"sources": "uri", "clips": "clip_id", "failures": "uri"}
        figures: dict[str, float] = {name: len(corpus.read(name, [key])) for name, key in keys.items()}
        if summary.sources:
            figures |= {"seconds": summary.seconds, "video_seconds": summary.video_seconds}
            figures |= {f"step_seconds/{name}": step.seconds for name, step in summary.steps.items()}
        run.metrics({f"corpus/{key}": value for key, value in figures.items()})


def curate_corpus(root: Path, settings: Config, policy_name: str | None = None) -> dict[str, Any]:
    """`uniavgen curate`: decide every clip by a policy."""
    from uniavgen.curation.policy.decisions import decide
    from uniavgen.curation.policy.rules import load_policy
    from uniavgen.shards.corpus.tables import Corpus

    corpus = Corpus.open(root)
    policy = load_policy(policy_name or settings.curate.policy)
    summary = decide(corpus, policy, settings.curate.split, settings.curate.duplicates)
    _show_funnel(summary)
    with corpus_run(corpus, settings) as run:
        run.params({"policy": summary.policy, "policy_digest": summary.policy_digest})
        run.tags({"policy_digest": summary.policy_digest, "corpus_version": corpus_version(corpus)})
        run.metrics(
            {
                "corpus/kept": summary.kept,
                "corpus/kept_hours": summary.kept_hours,
                "corpus/train": summary.train,
            }
        )
        run.metrics(
            {f"rejected/{reason.replace(':', ' ')}": count for reason, count in summary.reasons.items()}
        )
        funnel = corpus.root / "policies" / f"funnel-{summary.policy_digest}.json"
        funnel.write_text(json.dumps([dataclasses.asdict(row) for row in summary.funnel], indent=1) + "\n")
        run.artifact(funnel, "funnel")
    return {"command": "curate", "corpus": str(corpus.root), **dataclasses.asdict(summary)}


def shard_corpus(root: Path, settings: Config) -> dict[str, Any]:
    """`uniavgen shard`: write the kept clips as WebDataset tars."""
    from uniavgen.curation.captions.vlm_captions import captions_of
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.write.writer import write_shards

    corpus = Corpus.open(root)
    with console.progress("shards") as bar:
        summary = write_shards(
            corpus,
            settings.shard,
            caption=captions_of(corpus, settings.caption),
            on_progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    rows = [
        (split, summary.shards[split], summary.samples[split], summary.hours[split])
        for split in sorted(summary.shards)
    ]
    console.table(f"shards in {summary.manifest.parent}", ("split", "tars", "samples", "hours"), rows)
    state = f"{summary.written} written, {summary.reused} reused, {summary.removed} removed, {summary.bytes / 1e6:.1f} MB in all"
    console.console.print(
        state + (f"; {summary.undecided} clips undecided: run curate" if summary.undecided else "")
    )
    console.console.print(
        "samples by licence: " + ", ".join(f"{name} {count}" for name, count in summary.licences.items())
    )
    with corpus_run(corpus, settings) as run:
        run.tags({"corpus_version": corpus_version(corpus)})
        run.metrics({f"shards/{split}_samples": count for split, count in summary.samples.items()})
        run.artifact(summary.manifest, "shards")
    return {"command": "shard", "corpus": str(corpus.root), **dataclasses.asdict(summary)}


def verify_corpus_shards(root: Path, settings: Config) -> dict[str, Any]:
    """`uniavgen shard --verify`: open, hash and count every shard, decode a few samples; a line per defect."""
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.write.verify import verify_shards

    corpus = Corpus.open(root)
    with console.progress("verify") as bar:
        summary = verify_shards(
            corpus,
            settings.shard,
            on_progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    for defect in summary.defects:
        console.console.print(f"defect: {defect}", style="red", markup=False, soft_wrap=True)
    latents = f" and {summary.sidecars} sidecars of latents" if summary.sidecars else ""
    counts = (
        f"{summary.shards} shards{latents}, {summary.samples} samples, {summary.bytes / 1e6:.1f} MB opened"
    )
    console.console.print(
        f"{counts}, {summary.decoded} samples decoded: {len(summary.defects) or 'no'} defects"
    )
    return {"command": "shard --verify", "corpus": str(corpus.root), **dataclasses.asdict(summary)}


def report_corpus(root: Path, settings: Config) -> dict[str, Any]:
    """`uniavgen report`: make the corpus's page and attach it to the run."""
    from uniavgen.curation.report.page import write_report
    from uniavgen.shards.corpus.tables import Corpus

    corpus = Corpus.open(root)
    page = write_report(corpus, settings.report, settings.curate.duplicates).page
    console.console.print(f"report: open [bold]{escape(str(page))}[/] in a browser")
    with corpus_run(corpus, settings) as run:
        run.artifact(page.parent, "report")
    return {"command": "report", "corpus": str(corpus.root), "page": str(page)}


def _show_funnel(summary: CurationSummary) -> None:
    rows = [
        (row.rule, row.clips_in, row.failed_first, round(row.hours_failed_first * 60, 2), row.says)
        for row in summary.funnel
    ]
    shown = [row for row in rows if row[2]]
    console.table(
        f"policy {summary.policy}: rules that rejected",
        ("rule", "clips in", "rejected", "minutes", "asks that"),
        shown,
    )
    console.console.print(
        f"kept [bold]{summary.kept}[/] of {summary.clips} clips, {summary.kept_hours * 60:.2f} of "
        f"{summary.hours * 60:.2f} minutes; "
        f"train {summary.train}, val {summary.val}" + ("" if summary.written else " (nothing changed)")
    )
    for name, cosine in summary.near_cut.items():
        text = f"so many {name}s are near each other by luck that only from a cosine of {cosine:.2f} they keep persons apart"
        console.console.print(text, style="yellow")
