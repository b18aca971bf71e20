"""The corpus commands: call the floor that does the work, print what a person can act on, record it in MLflow.

One MLflow run belongs to a corpus; every command on that corpus continues it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration import console
from orchestration.tracking import Run, flat, open_run

if TYPE_CHECKING:
    from curation.decisions import CurationSummary
    from ingest.pipeline import Progress
    from orchestration.config import Config
    from shards.corpus import Corpus


def corpus_version(corpus: Corpus) -> str:
    """Identity of the corpus as it stands: table versions and the decisions' policy digest."""
    versions = "-".join(f"{name[0]}{version}" for name, version in corpus.versions().items())
    digests = corpus.query("SELECT DISTINCT policy_digest FROM decisions ORDER BY 1").to_pylist()
    return "-".join([versions, *(row["policy_digest"][:8] for row in digests)])


def corpus_run(corpus: Corpus, settings: Config) -> Run:
    """The MLflow run of this corpus."""
    return open_run(settings.tracking, corpus.root, "corpus build")


def ingest_corpus(sources: list[str], root: Path, settings: Config, *, retry: bool = False) -> dict[str, Any]:
    """`uniavgen ingest`: measure videos into the corpus."""
    from ingest.pipeline import ingest
    from shards.corpus import Corpus

    with console.progress("ingest: starting workers") as bar:

        def advance(progress: Progress) -> None:
            name = Path(progress.uri).name
            if progress.failure:
                console.console.print(f"  failed: {progress.failure}", style="yellow")
            bar.update(bar.task_ids[0], completed=progress.done, total=progress.total, description=f"ingest: {name}"[:48])

        summary = ingest(sources, root, settings.ingest, on_progress=advance, retry=retry).to_dict()
    corpus = Corpus.open(root)
    _show_ingest(summary)
    with corpus_run(corpus, settings) as run:
        run.params(flat(settings.ingest.model_dump(), "ingest."))
        counts = {
            name: len(corpus.read(name, [key])) for name, key in (("sources", "uri"), ("clips", "clip_id"), ("failures", "uri"))
        }
        speed = {key: summary[key] for key in ("seconds", "video_seconds")} if summary["sources"] else {}
        run.metrics({f"corpus/{key}": value for key, value in (counts | speed).items()})
    return {"command": "ingest", "corpus": str(corpus.root), **summary}


def curate_corpus(root: Path, settings: Config, policy_name: str | None = None) -> dict[str, Any]:
    """`uniavgen curate`: decide every clip by a policy."""
    from curation.decisions import decide
    from curation.policy import load_policy
    from shards.corpus import Corpus

    corpus = Corpus.open(root)
    policy = load_policy(policy_name or settings.curate.policy)
    summary = decide(corpus, policy, settings.curate.split)
    _show_funnel(summary)
    with corpus_run(corpus, settings) as run:
        run.params({"policy": summary.policy, "policy_digest": summary.policy_digest})
        run.tags({"policy_digest": summary.policy_digest, "corpus_version": corpus_version(corpus)})
        run.metrics({"corpus/kept": summary.kept, "corpus/kept_hours": summary.kept_hours, "corpus/train": summary.train})
        run.metrics({f"rejected/{reason.replace(':', ' ')}": count for reason, count in summary.reasons.items()})
        funnel = corpus.root / "policies" / f"funnel-{summary.policy_digest}.json"
        funnel.write_text(json.dumps([dataclasses.asdict(row) for row in summary.funnel], indent=1) + "\n")
        run.artifact(funnel, "funnel")
    return {"command": "curate", "corpus": str(corpus.root), **dataclasses.asdict(summary)}


def shard_corpus(root: Path, settings: Config) -> dict[str, Any]:
    """`uniavgen shard`: write the kept clips as WebDataset tars."""
    from curation.captions import caption
    from shards.corpus import Corpus
    from shards.writer import write_shards

    corpus = Corpus.open(root)
    with console.progress("shards") as bar:
        summary = write_shards(
            corpus,
            settings.shard,
            caption=caption,
            on_progress=lambda done, total: bar.update(bar.task_ids[0], completed=done, total=total),
        )
    rows = [(split, summary.shards[split], summary.samples[split], summary.hours[split]) for split in sorted(summary.shards)]
    console.table(f"shards in {summary.manifest.parent}", ("split", "tars", "samples", "hours"), rows)
    state = (
        f"{summary.written} written, {summary.reused} reused, {summary.removed} removed, {summary.bytes / 1e6:.1f} MB in all"
    )
    console.console.print(state + (f"; {summary.undecided} clips undecided: run curate" if summary.undecided else ""))
    with corpus_run(corpus, settings) as run:
        run.tags({"corpus_version": corpus_version(corpus)})
        run.metrics({f"shards/{split}_samples": count for split, count in summary.samples.items()})
        run.artifact(summary.manifest, "shards")
    return {"command": "shard", "corpus": str(corpus.root), **dataclasses.asdict(summary)}


def report_corpus(root: Path, settings: Config) -> dict[str, Any]:
    """`uniavgen report`: make the corpus's page and attach it to the run."""
    from curation.report import write_report
    from shards.corpus import Corpus

    corpus = Corpus.open(root)
    page = write_report(corpus, settings.report).page
    console.console.print(f"report: open [bold]{page}[/] in a browser")
    with corpus_run(corpus, settings) as run:
        run.artifact(page.parent, "report")
    return {"command": "report", "corpus": str(corpus.root), "page": str(page)}


def _show_ingest(summary: dict[str, Any]) -> None:
    """What came in, what failed and why, and where the time went."""
    rows = [(key.replace("_", " "), value) for key, value in summary.items() if isinstance(value, int | float)]
    console.table("ingested", ("what", "figure"), rows)
    if summary["passed_over"]:
        console.console.print(f"passed over, no videos by their names: {', '.join(sorted(summary['passed_over']))}")
    for copy, first in sorted(summary["duplicates"].items()):
        console.console.print(f"same content, ingested once: {copy} = {first}")
    if summary["skipped_failed"]:
        console.console.print(f"{summary['skipped_failed']} sources failed before and were left alone; try them: --retry")
    if summary["failures"]:
        console.table("failures (rows in the failures table)", ("kind", "sources"), sorted(summary["failures"].items()))
    if summary["step_seconds"]:
        total = sum(summary["step_seconds"].values())
        steps = sorted(summary["step_seconds"].items(), key=lambda item: -item[1])
        console.table(
            "step seconds", ("step", "seconds", "share %"), [(k, v, round(100 * v / total)) for k, v in steps if total]
        )


def _show_funnel(summary: CurationSummary) -> None:
    rows = [
        (row.rule, row.clips_in, row.failed_first, round(row.hours_failed_first * 60, 2), row.says) for row in summary.funnel
    ]
    shown = [row for row in rows if row[2]]
    console.table(
        f"policy {summary.policy}: rules that rejected", ("rule", "clips in", "rejected", "minutes", "asks that"), shown
    )
    console.console.print(
        f"kept [bold]{summary.kept}[/] of {summary.clips} clips, {summary.kept_hours * 60:.2f} of "
        f"{summary.hours * 60:.2f} minutes; "
        f"train {summary.train}, val {summary.val}" + ("" if summary.written else " (nothing changed)")
    )
