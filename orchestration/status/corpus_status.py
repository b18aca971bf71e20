"""State of a corpus: its tables and shards, and the ingests that work on it or died."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniavgen.ingest.engine.progress import Progress, StepProgress
from uniavgen.ingest.engine.run_dir import PROGRESS_FILE, RUNS_FOLDER
from uniavgen.orchestration.output.ingest_display import share_done, time_left_s
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.heartbeat import Beat, read_beat
from uniavgen.shards.tar.manifest import read_manifest


def corpus_status(root: Path) -> dict[str, Any]:
    """Counts of the corpus, its failures by kind, and the ingests at work. Raises UserError if there is none.

    `ingests` has one entry for each ingest that runs or was killed; one that ended has none.
    """
    corpus = Corpus.open(root)
    failures = "SELECT error_type AS kind, count(*) AS n FROM failures GROUP BY 1 ORDER BY 2 DESC, 1"
    counts = (
        "SELECT (SELECT count(*) FROM sources) AS sources, (SELECT count(*) FROM clips) AS clips, "
        "(SELECT count(*) FROM decisions) AS decided, (SELECT count(*) FROM decisions WHERE kept) AS kept, "
        "(SELECT count(*) FROM captions) AS captions"
    )
    manifest = read_manifest(corpus.root / "shards")
    entries = manifest.entries if manifest else ()
    return {
        "corpus": str(corpus.root),
        **corpus.query(counts).to_pylist()[0],
        "samples": sum(entry.samples for entry in entries),
        "shards": len(entries),
        "failures": {str(row["kind"]): row["n"] for row in corpus.query(failures).to_pylist()},
        "ingests": [ingest_status(beat) for beat in ingest_beats(corpus.root)],
    }


def ingest_beats(root: Path) -> list[Beat]:
    """The heartbeats of the ingests on a corpus that did not end, oldest first."""
    beats = [read_beat(path) for path in (root / RUNS_FOLDER).glob(f"*/{PROGRESS_FILE}")]
    return sorted((beat for beat in beats if beat), key=lambda beat: beat.started)


def ingest_status(beat: Beat) -> dict[str, Any]:
    """One ingest: done and left, rate, time left, failures by kind, steps, alive or dead and since when."""
    status = beat.describe()
    if not beat.content:
        return status | {"phase": "starting"}
    progress = progress_from(beat.content["progress"])
    began = beat.content.get("work_began_s")
    left = time_left_s(progress, began) if began is not None and beat.is_alive() else None
    return status | {
        "done": progress.done,
        "left": progress.total - progress.done,
        "share": share_done(progress),
        "clips": progress.clips,
        "video_s_per_s": progress.video_seconds / max(progress.elapsed_s, 1e-9),
        "elapsed_s": progress.elapsed_s,
        "time_left_s": left,
        "ends_at": time.time() + left if left is not None else None,
        "failures": progress.failures,
        "steps": [
            {
                "step": step.name,
                "done": step.done,
                "running": step.running,
                "left": step.queued,
                "failed": step.failed,
                "seconds": step.seconds,
            }
            for step in progress.steps
        ],
    }


def progress_from(document: Mapping[str, Any]) -> Progress:
    """The progress that an ingest wrote, as `dataclasses.asdict` gave it."""
    steps = tuple(StepProgress(**step) for step in document["steps"])
    return Progress(**{**document, "steps": steps})
