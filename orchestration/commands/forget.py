"""`uniavgen forget`: delete a source or a person from corpus and shards, and name the trainings on it."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import CorpusOption, command

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.tracking.config import TrackingConfig
    from uniavgen.shards.corpus.tables import Corpus

SHARDS_BUSY = "nothing was deleted: another process writes, copies (shard --to) or deletes in these shards"


@command
def forget(
    settings: Config,
    corpus: CorpusOption,
    source: Annotated[
        str | None, typer.Argument(help="Id, path, URL or file name of a source.", metavar="SOURCE")
    ] = None,
    speaker: Annotated[
        str | None,
        typer.Option(
            "--speaker", help="A speaker; the same person in other sources is deleted too.", metavar="ID"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be deleted; delete nothing.")
    ] = False,
) -> dict[str, Any]:
    """Delete a source or a person from corpus and shards, for good.

    Tables, media, step results, captions, latents and shards are cleaned, and the deleted source cannot be
    ingested again. Trainings that may have used it are named.

    Example: uniavgen forget interview.mp4 --corpus data/corpus
    """
    if (source is None) == (speaker is None):
        from uniavgen.shards.errors import UsageError

        raise UsageError("name a source or a speaker", where="forget", hint="SOURCE, or --speaker ID")
    if dry_run:
        return preview_deletion(corpus, settings, source, speaker)
    return forget_from_corpus(corpus, settings, source, speaker)


def preview_deletion(root: Path, settings: Config, source: str | None, speaker: str | None) -> dict[str, Any]:
    """Print what `forget_from_corpus` would delete. Nothing is written."""
    from uniavgen.curation.deletion import find_source, find_speaker
    from uniavgen.orchestration.output import console
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.tar.manifest import read_manifest, read_shard_keys
    from uniavgen.shards.write.publish import published

    corpus = Corpus.open(root)
    if source is not None:
        target = find_source(corpus, source)
    else:
        target = find_speaker(corpus, speaker or "", settings.curate.split, cache=False)
    shards = corpus.root / "shards"
    manifest = read_manifest(shards)
    tars = [
        entry.name
        for entry in (manifest.entries if manifest else ())
        if target.clips & set(read_shard_keys(shards, entry))
    ]
    trainings, copies = trainings_on(corpus, settings.tracking), published(corpus.root)
    rows = [
        ("sources", len(target.sources)),
        ("speakers", len(target.speakers)),
        ("clips", len(target.clips)),
        ("shards to rewrite", len(tars)),
        ("published copies to renew", len(copies)),
        ("trainings that may have used it", len(trainings)),
    ]
    console.table("would be deleted", ("what", "count"), rows)
    for name, ids in (("sources", target.sources), ("speakers", target.speakers)):
        if ids:
            console.print_line(f"{name}: {', '.join(sorted(ids))}")
    if target.perhaps:
        console.print_warning(f"possibly the same person, not included: {', '.join(sorted(target.perhaps))}")
    console.print_line("dry run: nothing was deleted")
    names = {name: sorted(value) for name, value in vars(target).items()}
    return {
        "command": "forget",
        "dry_run": True,
        "corpus": str(corpus.root),
        **names,
        "shards": tars,
        "trainings": _training_rows(trainings),
        "copies": copies,
    }


def forget_from_corpus(
    root: Path, settings: Config, source: str | None, speaker: str | None
) -> dict[str, Any]:
    """Delete one source, or one speaker with every speaker that is certainly the same person."""
    from uniavgen.curation.deletion import RUN_AGAIN, delete, find_source, find_speaker, summary_rows
    from uniavgen.orchestration.tracking.corpus_run import record_in_corpus_run
    from uniavgen.shards.atomic_files import locked
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.write.publish import published
    from uniavgen.shards.write.writer import SHARDS_LOCK

    corpus = Corpus.open(root)
    split = settings.curate.split
    target = find_source(corpus, source) if source is not None else find_speaker(corpus, speaker or "", split)
    trainings = trainings_on(corpus, settings.tracking)
    copies = published(corpus.root)
    with locked(corpus.root / SHARDS_LOCK, SHARDS_BUSY, RUN_AGAIN):
        deleted = delete(corpus, target)
        record_in_corpus_run(corpus, settings.tracking, lambda run: run.remove_artifacts("report"))
        rows = [*summary_rows(deleted), *_rewrite_shards(corpus, settings)]
    _show(rows, target, trainings, root, copies)
    names = {name: sorted(value) for name, value in vars(target).items() if name != "clips"}
    return {
        "command": "forget",
        "corpus": str(corpus.root),
        **names,
        **dataclasses.asdict(deleted),
        "trainings": _training_rows(trainings),
        "copies": copies,
    }


def trainings_on(corpus: Corpus, tracking: TrackingConfig) -> list[tuple[str, str, str, str]]:
    """Name, stage, start and corpus version of the training runs on this corpus, as recorded in MLflow.

    Any of them may have used any clip that was kept at its start, so all are named.
    """
    from uniavgen.orchestration.tracking.mlflow_runs import training_runs_on

    runs = training_runs_on(tracking, corpus.root)
    return [(run["name"], run["stage"], run["started"], run["corpus_version"]) for run in runs]


def _training_rows(trainings: list[tuple[str, str, str, str]]) -> list[dict[str, str]]:
    return [dict(zip(("run", "stage", "started", "corpus_version"), row, strict=True)) for row in trainings]


def _rewrite_shards(corpus: Corpus, settings: Config) -> list[tuple[str, Any]]:
    """Write the shards without the deleted clips; the caller holds their lock. Returns rows to print."""
    from uniavgen.curation.captions.vlm_captions import captions_of
    from uniavgen.shards.errors import UserError
    from uniavgen.shards.write.writer import write_shards

    shards = corpus.root / "shards"
    if not shards.is_dir():
        return []
    if not corpus.query("SELECT count(*) AS n FROM decisions WHERE kept").to_pylist()[0]["n"]:
        shutil.rmtree(shards)
        return [("shards", "all deleted: no kept clip is left")]
    try:
        written = write_shards(
            corpus, settings.shard, caption=captions_of(corpus, settings.caption), lock_held=True
        )
    except UserError as error:
        raise UserError(
            f"deleted everywhere except in the shards, which cannot be written: {error.what}",
            where=error.where,
            hint=f"{error.hint}; then run uniavgen shard",
            kind="still-in-shards",
        ) from error
    return [("shards rewritten", written.written), ("shards unchanged", written.reused)]


def _show(
    rows: list[tuple[str, Any]],
    target: Any,
    trainings: list[tuple[str, str, str, str]],
    root: Path,
    copies: list[str],
) -> None:
    """Print what was deleted, and what the user must still do."""
    from uniavgen.orchestration.output import console

    console.table("deleted", ("what", "count"), rows)
    if len(target.speakers) > 1:
        console.print_line(
            f"the same person under other ids, deleted too: {', '.join(sorted(target.speakers))}"
        )
    if target.perhaps:
        console.print_warning(
            f"possibly the same person, not deleted, please check: {', '.join(sorted(target.perhaps))}"
        )
    if trainings:
        console.table(
            "trainings on this corpus, which may have used it",
            ("run", "stage", "started", "corpus version"),
            trainings,
        )
    else:
        console.print_line("no training on this corpus is recorded in MLflow")
    for url in copies:
        again = shlex.join(["uniavgen", "shard", "--corpus", str(root), "--to", url])
        console.print_warning(f"the copy at {url} still contains it until you run: {again}")
    console.print_line("the report was deleted too; write it again: uniavgen report")
