"""The training commands: start stages through Ray Train, sample from what they made, record both in MLflow.

A run folder has one parent run; each stage is a child run of it, and a resumed stage continues its own.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from uniavgen.orchestration import console
from uniavgen.orchestration.commands.corpus_jobs import corpus_version
from uniavgen.orchestration.tracking.mlflow_runs import (
    Run,
    flat,
    impatient,
    open_run,
    survivable,
    system_metrics,
)
from uniavgen.orchestration.tracking.run_notes import plan_note, stage_note
from uniavgen.orchestration.tracking.stage_record import Record, StageRecord, recorded
from uniavgen.orchestration.validation_videos import validation_films
from uniavgen.orchestration.video_file import write_movie
from uniavgen.shards.cluster import ray_running
from uniavgen.shards.errors import UsageError, UserError
from uniavgen.shards.jsonl import read_rows

if TYPE_CHECKING:
    import numpy as np

    from uniavgen.orchestration.config import Config
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.sample import Sample
    from uniavgen.train.config import StageConfig
    from uniavgen.train.launch import StageResult


def train_stages(
    stage: str, root: Path, run_dir: Path, settings: Config, *, accept_changes: bool = False
) -> dict[str, Any]:
    """`uniavgen train STAGE`: one stage, or `all` in the plan's order."""
    import yaml

    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.train.checkpoint.run_folder import RunFolder
    from uniavgen.train.launch import check_stages

    plan = [entry.name for entry in settings.train.stages]
    if stage != "all" and stage not in plan:
        raise UsageError(f"unknown stage {stage!r}", hint=f"one of: {', '.join(plan)}, all")
    names = plan if stage == "all" else [stage]
    # utterances come with their own shards: a corpus of no clip will do, to name the run's data by
    only_utterances = all(settings.train.stage(name).emilia.shards for name in names)
    corpus = Corpus.create(root) if only_utterances else Corpus.open(root)
    done = check_stages(
        settings.train, names, _shards(corpus, settings), run_dir, accept_changes=accept_changes
    )
    # a plan that is done needs no workers
    workers = nullcontext() if done else ray_running()
    results = []

    def about(run: Run) -> None:
        resolved = settings.model_dump(mode="json", include={"train", "sample"})
        run.text(yaml.safe_dump(resolved, sort_keys=False), "configuration.yaml")

    note = partial(plan_note, settings.train, run_dir, str(root))
    with (
        recorded(Record(settings.tracking, run_dir, f"training {run_dir.name}", about, note)) as plan_record,
        workers,
    ):
        for name in names:
            if not (folder := RunFolder(run_dir, name)).done:
                folder.write(corpus_version=corpus_version(corpus))
            plan_record.describe()
            results.append(_train_stage(name, corpus, run_dir, settings, plan_record, accept_changes))
    console.table(
        f"training in {run_dir}",
        ("stage", "steps", "loss before", "loss after", "samples/s", "seconds", ""),
        [_row(result) for result in results],
    )
    return {
        "command": "train",
        "run": str(run_dir),
        "stages": [dataclasses.asdict(result) for result in results],
    }


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
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.train.checkpoint.trained_model import trained_config
    from uniavgen.train.generation import conditions_from, device_here, generate
    from uniavgen.train.options import Task

    tasks = [entry.value for entry in Task]
    if task not in tasks:
        raise UsageError(f"unknown task {task!r}", hint=f"one of: {', '.join(tasks)}")
    data = trained_config(run_dir)[1].data
    source = _sample(Corpus.open(root), clip)
    given = conditions_from(source, data, seed)
    own: dict[str, Any] = {
        "speech": text,
        "caption": caption,
        "reference": read_picture(image) if image else None,
    }
    given = dataclasses.replace(given, **{name: value for name, value in own.items() if value is not None})
    sampler = settings.sample
    with console.progress(f"sample {task}", sampler.steps) as bar:
        made = generate(
            run_dir,
            task,
            given,
            sampler,
            seed,
            device=device_here(settings.train.device),
            on_step=lambda done, steps: bar.update(bar.task_ids[0], completed=done, total=steps),
        )
    path = out or run_dir / "samples" / f"{task}-{source.key}-seed{seed}.mp4"
    size = made.frames.shape[1:3]
    movie = write_movie(path, made.frames, size, made.waveform, fps=made.fps, sample_rate=made.sample_rate)
    impatient()
    name = f"training {run_dir.name}"
    with survivable(f"the film, which stands in {movie}"), open_run(settings.tracking, run_dir, name) as run:
        run.artifact(movie, "samples")
    console.console.print(
        f"wrote [bold]{escape(str(movie))}[/]: task {task}, conditions of clip {source.key}, {len(made.frames)} frames"
    )
    return {
        "command": "sample",
        "movie": str(movie),
        "task": task,
        "clip": source.key,
        "frames": len(made.frames),
    }


def read_picture(path: Path) -> np.ndarray:
    """A picture file as uint8 [H, W, 3] in RGB. Raises UserError where it is none."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise UserError("the picture cannot be read", where=path, hint="give a PNG or JPEG file") from error


def _sample(corpus: Corpus, clip: str | None) -> Sample:
    """The clip named, from either split, or the first of val."""
    from uniavgen.shards.read.stream import SampleStream

    val = SampleStream(str(corpus.root / "shards"), "val")
    if clip is None or clip in val.keys:
        return val.sample_by_key(clip or val.keys[0])
    return SampleStream(str(corpus.root / "shards"), "train").sample_by_key(clip)


def _shards(corpus: Corpus, settings: Config) -> str:
    """Where training reads its shards: the corpus's own, or a copy that the settings name."""
    return settings.train.data.shards or str(corpus.root / "shards")


def _train_stage(
    name: str, corpus: Corpus, run_dir: Path, settings: Config, parent: Record, accept_changes: bool
) -> StageResult:
    """Train one stage as a child run; the child ends as failed where the stage does."""
    from uniavgen.train.checkpoint.run_folder import RunFolder
    from uniavgen.train.launch import run_stage

    home, version, plan = run_dir / name, corpus_version(corpus), settings.train.stage(name)
    read_from = _shards(corpus, settings)
    about = partial(
        _say_what_it_is, corpus=corpus, version=version, settings=settings, stage=plan, parent=parent
    )
    note = partial(stage_note, settings.train, name, run_dir, plan.emilia.shards or [read_from], version)
    with recorded(StageRecord(settings.tracking, home, f"stage {name}", about, note, parent)) as record:
        with _followed(name, plan.steps, record.log):
            done = RunFolder(run_dir, name).done
            with system_metrics(record.run, 0 if done else settings.tracking.system_metrics_s):
                result = run_stage(
                    settings.train, name, read_from, run_dir, record.logger, accept_changes=accept_changes
                )
        record.finished(result)
        if films := _films(name, read_from, run_dir, settings, anew=result.ran):
            record.films(films)
    for line in result.key_report:
        console.console.print(f"  {line}", style="dim")
    return result


def _films(stage: str, read_from: str, run_dir: Path, settings: Config, *, anew: bool) -> Path | None:
    """The folder of a stage's films, if any were made: those that are missing, or all where `anew`. The stage is done,
    whatever becomes of them."""
    try:
        return validation_films(stage, read_from, run_dir, settings, anew=anew)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        text = f"warning: not all films of stage {stage} were made ({reason}); the same command makes what is missing"
        console.console.print(text, style="yellow", markup=False)
        return None


def _say_what_it_is(
    run: Run, *, corpus: Corpus, version: str, settings: Config, stage: StageConfig, parent: Record
) -> None:
    """The corpus as input of the stage's run and of the training's, and the stage's settings as parameters."""
    for seen_by in filter(None, (parent.run, run)):
        seen_by.dataset(corpus, version, {"shards": stage.emilia.shards or [_shards(corpus, settings)]})
    own = flat(stage.model_dump(mode="json", exclude={"name"}), "stage.")
    common = flat(settings.train.model_dump(mode="json", exclude={"stages"}), "train.")
    run.params({"stage": stage.name, "corpus_version": version} | own | common)


@contextmanager
def _followed(name: str, steps: int, log: Path) -> Iterator[None]:
    """Show the progress of workers in other processes, by reading the lines that they log, and what they tell."""
    finished, events = threading.Event(), log.with_name("events.jsonl")
    # what earlier processes said is not said again
    places = {path: path.stat().st_size if path.is_file() else 0 for path in (events, log)}
    with console.progress(f"{name}: starting workers", steps) as bar:

        def news(path: Path) -> list[dict[str, Any]]:
            found = read_rows(path, places[path])
            places[path] = found.end
            return found.rows

        def tell_news() -> None:
            for event in news(events):
                bar.console.print(f"  {event['text']}", style="yellow", markup=False)

        def follow() -> None:
            while not finished.wait(0.5):
                tell_news()
                if steps_done := [row for row in news(log) if "loss/total" in row]:
                    last = steps_done[-1]
                    label = f"{name}: loss {last['loss/total']:.3f}"
                    bar.update(bar.task_ids[0], completed=last["step"], description=label)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            finished.set()
            follower.join()
            tell_news()


def _row(result: StageResult) -> tuple[Any, ...]:
    ends = (result.fixed_start, result.fixed_end)
    losses = [", ".join(f"{part} {loss:.3f}" for part, loss in values.items()) for values in ends]
    state = "" if result.ran else "was done"
    return (
        result.stage,
        result.steps,
        *losses,
        round(result.samples_per_s, 2),
        round(result.wall_seconds, 1),
        state,
    )
