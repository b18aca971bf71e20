"""`uniavgen forget`: a source or a person goes from the corpus and its shards; says what went, and which trainings saw it."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration import console
from uniavgen.shards.errors import UsageError, UserError

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.shards.corpus.tables import Corpus


SHARDS_BUSY = "nothing was forgotten: another run writes shards here, or copies them (shard --to), or forgets"


def forget_from_corpus(
    root: Path, settings: Config, source: str | None, speaker: str | None
) -> dict[str, Any]:
    """Forget one source, or one speaker with all who are surely the same person."""
    from uniavgen.curation.deletion import AGAIN, find_source, find_speaker, forget, summary_rows
    from uniavgen.orchestration.commands.corpus_jobs import corpus_run
    from uniavgen.shards.atomic_files import locked
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.write.publish import published
    from uniavgen.shards.write.writer import SHARDS_LOCK

    if (source is None) == (speaker is None):
        raise UsageError("name either a source or a speaker", where="forget", hint="SOURCE, or --speaker ID")
    corpus = Corpus.open(root)
    split = settings.curate.split
    target = find_source(corpus, source) if source is not None else find_speaker(corpus, speaker or "", split)
    seen_by = trainings_on(corpus, settings)
    copies = published(corpus.root)
    with locked(corpus.root / SHARDS_LOCK, SHARDS_BUSY, AGAIN):
        done = forget(corpus, target)
        with corpus_run(corpus, settings) as run:
            run.remove_artifacts("report")
        rows = [*summary_rows(done), *_rewritten(corpus, settings)]
    console.table("forgotten", ("what", "count"), rows)
    if len(target.speakers) > 1:
        console.console.print(
            f"the same person under other names, forgotten too: {', '.join(sorted(target.speakers))}"
        )
    if target.perhaps:
        console.console.print(
            f"[yellow]perhaps the same person, not forgotten; look:[/] {', '.join(sorted(target.perhaps))}"
        )
    if seen_by:
        console.table(
            "trainings on this corpus, which may have seen it",
            ("run", "stage", "started", "corpus version"),
            seen_by,
        )
    else:
        console.console.print("no training on this corpus is recorded in MLflow")
    for url in copies:
        again = shlex.join(["uniavgen", "shard", "--corpus", str(root), "--to", url])
        console.console.print(
            f"its copy still holds it until you run: {again}", markup=False, soft_wrap=True, style="yellow"
        )
    console.console.print("the report was removed with it; make it again: uniavgen report")
    named = {name: sorted(value) for name, value in vars(target).items() if name != "clips"}
    runs = [dict(zip(("run", "stage", "started", "corpus_version"), row, strict=True)) for row in seen_by]
    return {
        "command": "forget",
        "corpus": str(corpus.root),
        **named,
        **dataclasses.asdict(done),
        "trainings": runs,
        "copies": copies,
    }


def _rewritten(corpus: Corpus, settings: Config) -> list[tuple[str, Any]]:
    """Take what is in no table any more out of the shards, whose lock is held; what that did, for people."""
    from uniavgen.curation.captions.vlm_captions import captions_of
    from uniavgen.shards.write.writer import write_shards

    shards = corpus.root / "shards"
    if not shards.is_dir():
        return []
    if not corpus.query("SELECT count(*) AS n FROM decisions WHERE kept").to_pylist()[0]["n"]:
        shutil.rmtree(shards)
        return [("shards", "all removed: no clip is left")]
    try:
        written = write_shards(
            corpus, settings.shard, caption=captions_of(corpus, settings.caption), held=True
        )
    except UserError as error:
        what = f"it is forgotten everywhere but in the shards, which cannot be written: {error.what}"
        raise UserError(
            what, where=error.where, hint=f"{error.hint}; then run uniavgen shard", kind="still-in-shards"
        ) from error
    return [("shards rewritten", written.written), ("shards untouched", written.reused)]


def trainings_on(corpus: Corpus, settings: Config) -> list[tuple[str, str, str, str]]:
    """Training runs whose MLflow dataset is this corpus: name, stage, start, corpus version. Any of them may have seen any
    clip that was kept then, so all are named."""
    from uniavgen.orchestration.tracking.mlflow_runs import runs_on

    runs = runs_on(settings.tracking, corpus.root)
    return [(run["name"], run["stage"], run["started"], run["corpus_version"]) for run in runs]
