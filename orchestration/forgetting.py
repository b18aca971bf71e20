"""`uniavgen forget`: a source or a person goes from the corpus and its shards; says what went, and which trainings saw it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration import console
from shards.errors import UsageError

if TYPE_CHECKING:
    from orchestration.config import Config
    from shards.corpus import Corpus


def forget_from_corpus(root: Path, settings: Config, source: str | None, speaker: str | None) -> dict[str, Any]:
    """Forget one source, or one speaker with all who are surely the same person."""
    from curation.captioning import captions_of
    from curation.forgetting import find_source, find_speaker, forget, summary_rows
    from orchestration.jobs import corpus_run
    from shards.corpus import Corpus
    from shards.writer import write_shards

    if (source is None) == (speaker is None):
        raise UsageError("name either a source or a speaker", where="forget", do="SOURCE, or --speaker ID")
    corpus = Corpus.open(root)
    split = settings.curate.split
    target = find_source(corpus, source) if source is not None else find_speaker(corpus, speaker or "", split)
    seen_by = trainings_on(corpus, settings)
    done = forget(corpus, target)
    with corpus_run(corpus, settings) as run:
        run.remove_artifacts("report")
    rows = summary_rows(done)
    shards = corpus.root / "shards"
    if shards.is_dir():
        kept = corpus.query("SELECT count(*) AS n FROM decisions WHERE kept").to_pylist()[0]["n"]
        if kept:
            written = write_shards(corpus, settings.shard, caption=captions_of(corpus, settings.caption))
            rows += [("shards rewritten", written.written), ("shards untouched", written.reused)]
        else:
            import shutil

            shutil.rmtree(shards)
            rows.append(("shards", "all removed: no clip is left"))
    console.table("forgotten", ("what", "count"), rows)
    if len(target.speakers) > 1:
        console.console.print(f"the same person under other names, forgotten too: {', '.join(sorted(target.speakers))}")
    if target.perhaps:
        console.console.print(f"[yellow]perhaps the same person, not forgotten; look:[/] {', '.join(sorted(target.perhaps))}")
    if seen_by:
        console.table(
            "trainings on this corpus, which may have seen it", ("run", "stage", "started", "corpus version"), seen_by
        )
    else:
        console.console.print("no training on this corpus is recorded in MLflow")
    console.console.print("the report was removed with it; make it again: uniavgen report")
    named = {name: sorted(value) for name, value in vars(target).items() if name != "clips"}
    runs = [dict(zip(("run", "stage", "started", "corpus_version"), row, strict=True)) for row in seen_by]
    return {"command": "forget", "corpus": str(corpus.root), **named, **dataclasses.asdict(done), "trainings": runs}


def trainings_on(corpus: Corpus, settings: Config) -> list[tuple[str, str, str, str]]:
    """Training runs whose MLflow dataset is this corpus: name, stage, start, corpus version. Any of them may have seen any
    clip that was kept then, so all are named."""
    from orchestration.tracking import runs_on

    runs = runs_on(settings.tracking, corpus.root)
    return [(run["name"], run["stage"], run["started"], run["corpus_version"]) for run in runs]
