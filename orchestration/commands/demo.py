"""`uniavgen demo`: run every step on a small corpus with known truth, and score the measurements."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import (
    ConfigOption,
    JsonOption,
    PresetOption,
    SetOption,
    run_command,
)

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.demo.score import DemoScore
    from uniavgen.orchestration.demo.truth import DemoTruth
    from uniavgen.orchestration.plan_runs.plan_file import Plan

MIN_DISK_GIB = 2
SECTIONS = {
    "2/6 ingest: measure every video": ("ingest",),
    "3/6 curate, shard, report": ("curate", "shard", "report"),
    "4/6 train: audio, joint, multitask": ("train",),
    "5/6 sample: generate a video with modality-aware guidance": ("sample",),
}
"""Steps of the plan by the line of the results that shows their seconds."""


def demo(
    folder: Annotated[
        Path, typer.Option("--folder", help="Folder for everything that the demo makes.", metavar="DIR")
    ] = Path("demo-output"),
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Run every step on a small corpus with known truth.

    The demo makes 18 short videos, five of them with a planted defect, and ingests, curates, shards, trains
    and samples. It takes about six minutes on two CPU cores. Run it again to continue or to print the
    results.

    Example: uniavgen demo --folder demo-output
    """

    def body(settings: Config) -> dict[str, Any]:
        return run_demo(folder, settings)

    run_command(body, preset, config, [f"tracking.folder={folder / 'mlflow'}", *(set_ or [])], json_)


def run_demo(folder: Path, settings: Config) -> dict[str, Any]:
    """Make or reuse everything in `folder`, print the results. Raises UserError if the disk is full.

    All steps between making the videos and scoring are a plan (`demo_plan`): what did not change is skipped,
    and its summary is that of the run before.
    """
    from uniavgen.orchestration.demo.score import score
    from uniavgen.orchestration.output.console import timed_section
    from uniavgen.orchestration.plan_runs.runner import run_plan
    from uniavgen.orchestration.plan_runs.steps import Job
    from uniavgen.shards.corpus.tables import Corpus

    _check_disk(folder)
    settings = settings.model_copy(deep=True)
    settings.curate.split.people_by = ["voice"]  # all people of the demo have the same face
    seconds: dict[str, float] = {}
    started = time.monotonic()
    with timed_section("1/6 build: make videos with known truth, good ones and bad ones", seconds):
        truth = _build_videos(folder / "videos")
    steps = run_plan(Job(demo_plan(folder), settings))["steps"]
    for section, names in SECTIONS.items():
        seconds[section] = round(sum(steps[name]["seconds"] for name in names), 1)
    with timed_section("6/6 score: compare the measurements with the truth", seconds):
        measured = score(Corpus.open(folder / "corpus"), truth)
    total = time.monotonic() - started
    summaries = {name: step["summary"] for name, step in steps.items()}
    _show_results(seconds, total, summaries["ingest"], measured)
    files = {"report": summaries["report"]["page"], "video": summaries["sample"]["movie"]}
    _show_outputs(folder, settings, files)
    return {
        "command": "demo",
        "seconds": seconds,
        "total_seconds": round(total, 1),
        "steps": {name: step["action"] for name, step in steps.items()},
        **summaries,
        "score": measured.as_dict(),
        "report": files["report"],
    }


def demo_plan(folder: Path) -> Plan:
    """The plan of the demo, in `folder`. Paths of settings are relative to the current folder, as typed."""
    from uniavgen.orchestration.plan_runs.plan_file import Plan, Steps, anchored

    names = [name for names in SECTIONS.values() for name in names]
    plan = Plan(
        name="demo",
        home=Path.cwd(),
        folder=folder.absolute(),
        sources=[str(folder / "videos")],
        steps=Steps.model_validate({name: {} for name in names}),
    )
    return anchored(plan, Path.cwd() / "demo.yaml")


def _check_disk(folder: Path) -> None:
    from uniavgen.shards.errors import UserError

    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free / 2**30
    if free < MIN_DISK_GIB:
        raise UserError(
            f"{free:.1f} GiB are free, the demo needs {MIN_DISK_GIB}",
            where=folder,
            hint="free space, or name another disk with --folder",
        )


def _build_videos(videos: Path) -> DemoTruth:
    from uniavgen.orchestration.demo.build import build_demo
    from uniavgen.orchestration.output import console

    with console.progress("making videos") as bar:
        return build_demo(
            videos,
            on_progress=lambda done, total, name: bar.update(done, total, label=f"making {name}"),
        )


def _show_results(
    seconds: dict[str, float], total: float, ingested: dict[str, Any], measured: DemoScore
) -> None:
    from uniavgen.orchestration.output import console

    console.table("seconds per step", ("step", "seconds"), [*seconds.items(), ("total", round(total, 1))])
    if ingested["sources"]:
        rate = ingested["video_seconds"] / max(ingested["seconds"], 1e-9)
        console.print_line(
            f"ingested {rate:.2f} seconds of video per second ({ingested['video_seconds']:.0f} s of video)"
        )
    console.table("measurements compared with the truth", ("what", "value", "target"), measured.rows())
    console.table("planted bad sources", ("file", "planted", "caught by"), measured.caught_rows())


def _show_outputs(folder: Path, settings: Config, files: dict[str, Any]) -> None:
    from rich.markup import escape

    from uniavgen.orchestration.output import console

    paths = files | {"shards": folder / "corpus" / "shards", "model": folder / "run"}
    console.table("outputs", ("what", "path"), [(name, str(path)) for name, path in paths.items()])
    console.console.print(
        f"MLflow: [bold]uniavgen ui --folder {escape(settings.tracking.folder)}[/]   (or `make ui`)"
    )
