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
from orchestration.step_log import Backlog, StepLogger
from orchestration.tracking import Run, flat, open_run, survivable, system_metrics
from orchestration.validation_films import validation_films
from shards.cluster import ray_running
from shards.errors import UsageError, UserError

if TYPE_CHECKING:
    import numpy as np

    from orchestration.config import Config
    from shards.corpus import Corpus
    from shards.sample import Sample
    from train.launch import StageResult


def train_stages(stage: str, root: Path, run_dir: Path, settings: Config, *, accept_changes: bool = False) -> dict[str, Any]:
    """`uniavgen train STAGE`: one stage, or `all` in the plan's order."""
    from shards.corpus import Corpus
    from train.checkpoint import RunFolder
    from train.launch import check_stage

    plan = [entry.name for entry in settings.train.stages]
    if stage != "all" and stage not in plan:
        raise UsageError(f"unknown stage {stage!r}", do=f"one of: {', '.join(plan)}, all")
    names = plan if stage == "all" else [stage]
    # utterances come with their own shards: a corpus of no clip will do, to name the run's data by
    only_utterances = all(settings.train.stage(name).emilia.shards for name in names)
    corpus = Corpus.create(root) if only_utterances else Corpus.open(root)
    check_stage(settings.train, names[0], _shards(corpus, settings), run_dir, accept_changes=accept_changes)
    # a plan that is done needs no workers
    workers = nullcontext() if all(RunFolder(run_dir, name).done for name in names) else ray_running()
    with open_run(settings.tracking, run_dir, f"training {run_dir.name}") as parent, workers:
        results = [_train_stage(name, corpus, run_dir, settings, parent, accept_changes) for name in names]
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


def _shards(corpus: Corpus, settings: Config) -> str:
    """Where training reads its shards: the corpus's own, or a copy that the settings name."""
    return settings.train.data.shards or str(corpus.root / "shards")


def _train_stage(name: str, corpus: Corpus, run_dir: Path, settings: Config, parent: Run, accept_changes: bool) -> StageResult:
    """Train one stage as a child run; the child ends as failed where the stage does."""
    from train.checkpoint import RunFolder
    from train.launch import run_stage

    home = run_dir / name
    version = corpus_version(corpus)
    log = (home / "metrics.jsonl").absolute()
    with open_run(settings.tracking, home, f"stage {name}", parent=parent) as child:
        for run in (parent, child):
            audio_shards = settings.train.stage(name).emilia.shards
            run.dataset(corpus, version, {"shards": audio_shards or _shards(corpus, settings)})
        child.params(flat(settings.train.model_dump(mode="json"), "train.") | {"stage": name, "corpus_version": version})
        with _followed(name, settings.train.stage(name).steps, log):
            if not (folder := RunFolder(run_dir, name)).done:
                folder.write(corpus_version=version)
            logger = StepLogger(child, log)
            try:
                with system_metrics(child, 0 if folder.done else settings.tracking.system_metrics_s):
                    result = run_stage(
                        settings.train, name, _shards(corpus, settings), run_dir, logger, accept_changes=accept_changes
                    )
            finally:
                with survivable(f"all metrics; the next run of this stage sends the rest of {log}"):
                    Backlog(child, log).send()
        with survivable(f"what stage {name} came to"):
            child.params({f"parameters.{part}": count for part, count in result.parameters.items()})
            child.metrics({"samples_per_s": result.samples_per_s, "data_wait_share": result.data_wait_share})
            if result.ran and settings.tracking.registered_model:
                child.register(settings.tracking.registered_model, result.weights, name)
        if result.ran and (films := validation_films(name, _shards(corpus, settings), run_dir, settings)):
            with survivable(f"the films of stage {name}, which stand in {films}"):
                child.artifact(films, "validation")
    for line in result.key_report:
        console.console.print(f"  {line}", style="dim")
    return result


@contextmanager
def _followed(name: str, steps: int, log: Path) -> Iterator[None]:
    """Show the progress of workers in other processes, by reading the lines that they log, and what they tell."""
    finished = threading.Event()
    events = log.with_name("events.jsonl")
    told = len(_lines(events))
    with console.progress(f"{name}: starting workers", steps) as bar:

        def tell_news() -> None:
            nonlocal told
            news = _lines(events)[told:]
            told += len(news)
            for line in news:
                bar.console.print(f"  {json.loads(line)['text']}", style="yellow", markup=False)

        def follow() -> None:
            while not finished.wait(0.5):
                tell_news()
                lines = _lines(log)
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
            tell_news()


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that others append to."""
    text = path.read_text() if path.is_file() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _row(result: StageResult) -> tuple[Any, ...]:
    ends = (result.fixed_start, result.fixed_end)
    losses = [", ".join(f"{part} {loss:.3f}" for part, loss in values.items()) for values in ends]
    state = "" if result.ran else "was done"
    return result.stage, result.steps, *losses, round(result.samples_per_s, 2), round(result.wall_seconds, 1), state
