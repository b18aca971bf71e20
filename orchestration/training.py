"""The training commands: start stages through Ray Train, sample from what they made, record both in MLflow.

A run folder has one parent run; each stage is a child run of it, and a resumed stage continues its own.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration import console
from orchestration.jobs import corpus_version
from orchestration.movie import write_movie
from orchestration.tracking import Run, StepLogger, flat, open_run
from shards.cluster import ray_running
from shards.errors import UsageError, UserError

if TYPE_CHECKING:
    import numpy as np

    from orchestration.config import Config
    from shards.corpus import Corpus
    from shards.sample import Sample
    from train.launch import StageResult


def train_stages(stage: str, root: Path, run_dir: Path, settings: Config) -> dict[str, Any]:
    """`uniavgen train STAGE`: one stage, or `all` in the plan's order."""
    from shards.corpus import Corpus
    from train.checkpoint import RunFolder
    from train.launch import check_stage

    plan = [entry.name for entry in settings.train.stages]
    if stage != "all" and stage not in plan:
        raise UsageError(f"unknown stage {stage!r}", do=f"one of: {', '.join(plan)}, all")
    names = plan if stage == "all" else [stage]
    corpus = Corpus.open(root)
    check_stage(settings.train, names[0], corpus.root / "shards", run_dir)
    # a plan that is done needs no workers
    workers = nullcontext() if all(RunFolder(run_dir, name).done for name in names) else ray_running()
    with open_run(settings.tracking, run_dir, f"training {run_dir.name}") as parent, workers:
        results = [_train_stage(name, corpus, run_dir, settings, parent) for name in names]
    console.table(
        f"training in {run_dir}",
        ("stage", "steps", "loss before", "loss after", "samples/s", "seconds", ""),
        [_row(result) for result in results],
    )
    return {"command": "train", "run": str(run_dir), "stages": [dataclasses.asdict(result) for result in results]}


def sample_movie(
    run_dir: Path,
    root: Path,
    settings: Config,
    *,
    task: str,
    clip: str | None = None,
    image: Path | None = None,
    text: str | None = None,
    caption: str | None = None,
    out: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """`uniavgen sample`: generate a movie for a task and attach it to the run."""
    from shards.corpus import Corpus
    from train.checkpoint import trained_config
    from train.generate import conditions_from, generate
    from train.options import Task

    tasks = [entry.value for entry in Task]
    if task not in tasks:
        raise UsageError(f"unknown task {task!r}", do=f"one of: {', '.join(tasks)}")
    data = trained_config(run_dir)[1].data
    source = _sample(Corpus.open(root), clip)
    given = conditions_from(source, data, seed)
    own: dict[str, Any] = {"speech": text, "caption": caption, "reference": read_picture(image) if image else None}
    given = dataclasses.replace(given, **{name: value for name, value in own.items() if value is not None})
    sampler = settings.sample
    with console.progress(f"sample {task}", sampler.steps) as bar:
        made = generate(
            run_dir,
            task,
            given,
            sampler,
            seed,
            on_step=lambda done, steps: bar.update(bar.task_ids[0], completed=done, total=steps),
        )
    path = out or run_dir / "samples" / f"{task}-{source.key}-seed{seed}.mp4"
    size = made.frames.shape[1:3]
    movie = write_movie(path, made.frames, size, made.waveform, fps=made.fps, sample_rate=made.sample_rate)
    with open_run(settings.tracking, run_dir, f"training {run_dir.name}") as run:
        run.artifact(movie, "samples")
    console.console.print(f"wrote [bold]{movie}[/]: task {task}, conditions of clip {source.key}, {len(made.frames)} frames")
    return {"command": "sample", "movie": str(movie), "task": task, "clip": source.key, "frames": len(made.frames)}


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 [H, W, 3] in RGB. Raises UserError where it is none."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError("the picture cannot be read", where=path, do="give a PNG or JPEG file") from error


def _sample(corpus: Corpus, clip: str | None) -> Sample:
    """The clip named, from either split, or the first of val."""
    from shards.stream import SampleStream

    val = SampleStream(str(corpus.root / "shards"), "val")
    if clip is None or clip in val.keys:
        return val.sample_named(clip or val.keys[0])
    return SampleStream(str(corpus.root / "shards"), "train").sample_named(clip)


def _train_stage(name: str, corpus: Corpus, run_dir: Path, settings: Config, parent: Run) -> StageResult:
    """Train one stage as a child run; the child ends as failed where the stage does."""
    from train.launch import run_stage

    home = run_dir / name
    version = corpus_version(corpus)
    log = (home / "metrics.jsonl").absolute()
    with open_run(settings.tracking, home, f"stage {name}", parent=parent) as child:
        for run in (parent, child):
            run.dataset(corpus, version, {"shards": str(corpus.root / "shards")})
        child.params(flat(settings.train.model_dump(mode="json"), "train.") | {"stage": name, "corpus_version": version})
        with _followed(name, settings.train.stage(name).steps, log):
            result = run_stage(settings.train, name, corpus.root / "shards", run_dir, StepLogger(child, log))
        child.params({f"parameters.{part}": count for part, count in result.parameters.items()})
        child.metrics({"samples_per_s": result.samples_per_s, "data_wait_share": result.data_wait_share})
    for line in result.key_report:
        console.console.print(f"  {line}", style="dim")
    return result


@contextmanager
def _followed(name: str, steps: int, log: Path) -> Iterator[None]:
    """Show the progress of workers in other processes, by reading the lines that they log."""
    finished = threading.Event()
    with console.progress(f"{name}: starting workers", steps) as bar:

        def follow() -> None:
            while not finished.wait(0.5):
                lines = log.read_text().splitlines() if log.is_file() else []
                steps_done = [line for line in lines if "loss/total" in line]
                if steps_done:
                    last = json.loads(steps_done[-1])
                    label = f"{name}: loss {last['loss/total']:.3f}"
                    bar.update(bar.task_ids[0], completed=last["step"], description=label)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            finished.set()
            follower.join()


def _row(result: StageResult) -> tuple[Any, ...]:
    ends = (result.fixed_start, result.fixed_end)
    losses = [", ".join(f"{part} {loss:.3f}" for part, loss in values.items()) for values in ends]
    state = "" if result.ran else "was done"
    return result.stage, result.steps, *losses, round(result.samples_per_s, 2), round(result.wall_seconds, 1), state
