"""The whole road on the demo corpus: videos, corpus, shards, three stages, a sampled movie, and how good it all was."""

from __future__ import annotations

import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from uniavgen.orchestration import console
from uniavgen.orchestration.commands.corpus_jobs import (
    curate_corpus,
    ingest_corpus,
    report_corpus,
    shard_corpus,
)
from uniavgen.orchestration.commands.training_jobs import sample_movie, train_stages
from uniavgen.orchestration.demo.build import build_demo
from uniavgen.orchestration.demo.score import DemoScore, score
from uniavgen.shards.cluster import ray_running
from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import RunFolder

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.demo.truth import DemoTruth

DISK_NEEDED_GB = 2


def run_demo(folder: Path, settings: Config) -> dict[str, Any]:
    """Make or reuse everything under `folder` and print the figures. Raises UserError where space is short."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 2**30
    if free < DISK_NEEDED_GB:
        raise UserError(
            f"{free:.1f} GiB free, the demo needs {DISK_NEEDED_GB}",
            where=folder,
            hint="free space or name --folder",
        )
    settings = settings.model_copy(deep=True)
    settings.curate.split.people_by = ["voice"]  # one portrait plays every part
    videos, corpus, run = folder / "videos", folder / "corpus", folder / "run"
    seconds: dict[str, float] = {}
    started = time.monotonic()
    with console.step("1/6 build: videos with known truth, the good and the bad", seconds):
        truth = _build(videos)
    # one Ray for all of it, unless nothing is left to do
    with nullcontext() if RunFolder(run, settings.train.stages[-1].name).done else ray_running():
        with console.step("2/6 ingest: measure every video", seconds):
            ingested = ingest_corpus([str(videos)], corpus, settings)
        with console.step("3/6 curate, shard, report", seconds):
            curated = curate_corpus(corpus, settings)
            sharded = shard_corpus(corpus, settings)
            page = report_corpus(corpus, settings)["page"]
        with console.step("4/6 train: audio, joint, multitask", seconds):
            trained = train_stages("all", corpus, run, settings)
    with console.step("5/6 sample: a movie under modality-aware guidance", seconds):
        sampled = sample_movie(run, corpus, settings, task="joint")
    with console.step("6/6 score against the truth", seconds):
        from uniavgen.shards.corpus.tables import Corpus

        measured = score(Corpus.open(corpus), truth)
    total = time.monotonic() - started
    _show(seconds, total, ingested, trained, measured)
    _show_places({"report": page, "movie": sampled["movie"], "shards": corpus / "shards", "model": run})
    console.console.print(
        f"MLflow: [bold]uniavgen ui --folder {escape(settings.tracking.folder)}[/]   (or `make ui`)"
    )
    return {
        "command": "demo",
        "seconds": seconds,
        "total_seconds": round(total, 1),
        "ingest": ingested,
        "curate": curated,
        "shard": sharded,
        "train": trained,
        "sample": sampled,
        "score": measured.as_dict(),
        "report": page,
    }


def _build(videos: Path) -> DemoTruth:
    with console.progress("making videos") as bar:

        def advance(done: int, total: int, name: str) -> None:
            bar.update(bar.task_ids[0], completed=done, total=total, description=f"making {name}")

        return build_demo(videos, on_progress=advance)


def _show(
    seconds: dict[str, float],
    total: float,
    ingested: dict[str, Any],
    trained: dict[str, Any],
    measured: DemoScore,
) -> None:
    """The figures that the demo promises."""
    console.table("seconds per step", ("step", "seconds"), [*seconds.items(), ("total", round(total, 1))])
    if ingested["sources"]:
        rate = ingested["video_seconds"] / max(ingested["seconds"], 1e-9)
        console.console.print(
            f"ingested {rate:.2f} seconds of video per second ({ingested['video_seconds']:.0f} s of video)"
        )
    console.table("measured against the truth", ("what", "figure", "aim"), measured.rows())
    console.table("planted bad sources", ("file", "planted", "caught by"), measured.caught_rows())


def _show_places(places: dict[str, Any]) -> None:
    console.table("where to look", ("what", "path"), [(name, str(path)) for name, path in places.items()])
