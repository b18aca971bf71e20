"""`uniavgen shard`: write the kept clips as WebDataset tars, check them, or copy them to another place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CheckFailed, CorpusOption, command

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.tracking.mlflow_runs import Run


@command
def shard(
    settings: Config,
    corpus: CorpusOption,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Only check the shards that exist; exit with 1 on any defect."),
    ] = False,
    to: Annotated[
        str | None, typer.Option("--to", help="Then copy them to a folder or s3:// URL.", metavar="URL")
    ] = None,
) -> dict[str, Any]:
    """Write the kept clips as WebDataset shards.

    A shard whose samples did not change is left as it is.

    Example: uniavgen shard --corpus data/corpus --to s3://bucket/shards
    """
    from uniavgen.shards.errors import UsageError

    if to and verify:
        raise UsageError("--verify only checks, --to copies", where="--to, --verify", hint="give one of them")
    if to:
        return publish_corpus_shards(corpus, settings, to)
    if not verify:
        return shard_corpus(corpus, settings)
    summary = verify_corpus_shards(corpus, settings)
    if summary["defects"]:
        raise CheckFailed(summary)
    return summary


def shard_corpus(root: Path, settings: Config) -> dict[str, Any]:
    """Bring the corpus's shards in line with its decisions."""
    from uniavgen.curation.captions.vlm_captions import captions_of
    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.tracking.corpus_run import corpus_version, record_in_corpus_run
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.write.writer import write_shards

    corpus = Corpus.open(root)
    with console.progress("shards") as bar:
        summary = write_shards(
            corpus, settings.shard, caption=captions_of(corpus, settings.caption), on_progress=bar.update
        )
    rows = [
        (split, summary.shards[split], summary.samples[split], summary.hours[split])
        for split in sorted(summary.shards)
    ]
    console.table(f"shards in {summary.manifest.parent}", ("split", "tars", "samples", "hours"), rows)
    counts = (
        f"tars: {summary.written} written, {summary.reused} unchanged, {summary.removed} removed; "
        f"{summary.bytes / 1e6:.1f} MB in total"
    )
    undecided = f"; {summary.undecided} clips are undecided: run uniavgen curate" if summary.undecided else ""
    console.print_line(counts + undecided)
    console.print_line(
        "samples by licence: " + ", ".join(f"{name} {count}" for name, count in summary.licences.items())
    )

    def log(run: Run) -> None:
        run.tags({"corpus_version": corpus_version(corpus)})
        run.metrics({f"shards/{split}_samples": count for split, count in summary.samples.items()})
        run.artifact(summary.manifest, "shards")

    record_in_corpus_run(corpus, settings.tracking, log)
    return {"command": "shard", "corpus": str(corpus.root), **dataclasses.asdict(summary)}


def verify_corpus_shards(root: Path, settings: Config) -> dict[str, Any]:
    """Open, hash and count every shard, decode a few samples, and print one line per defect."""
    from uniavgen.orchestration.output import console
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.write.verify import verify_shards

    corpus = Corpus.open(root)
    with console.progress("verify") as bar:
        summary = verify_shards(corpus, settings.shard, on_progress=bar.update)
    for defect in summary.defects:
        console.print_line(f"defect: {defect}", style="red")
    latents = f" and {summary.sidecars} latent sidecars" if summary.sidecars else ""
    console.print_line(
        f"checked {summary.shards} shards{latents}, {summary.samples} samples, {summary.bytes / 1e6:.1f} MB; "
        f"decoded {summary.decoded} samples: {len(summary.defects) or 'no'} defects"
    )
    return {"command": "shard --verify", "corpus": str(corpus.root), **dataclasses.asdict(summary)}


def publish_corpus_shards(root: Path, settings: Config, url: str) -> dict[str, Any]:
    """Write the shards, then bring the copy at `url` in line with them."""
    from uniavgen.orchestration.output import console
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.write.publish import publish_shards

    summary = shard_corpus(root, settings)
    with console.progress(f"copying to {url}") as bar:
        published = publish_shards(Corpus.open(root).root / "shards", url, on_progress=bar.update)
    console.print_line(
        f"{url}: {published.sent} tars copied ({published.bytes / 1e6:.1f} MB), "
        f"{published.stood} there before, {published.removed} removed"
    )
    return {**summary, "published": dataclasses.asdict(published)}
