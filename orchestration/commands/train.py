"""`uniavgen train`: train stages through Ray Train, show their progress, and record them in MLflow.

A run folder has one parent run in MLflow. Each stage is a child run of it; a resumed stage continues its own.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import (
    ConfigOption,
    CorpusOption,
    JsonOption,
    NameOption,
    RunOption,
    SetOption,
    run_command,
)

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.tracking.mlflow_runs import Run
    from uniavgen.orchestration.tracking.stage_record import Record
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.train.config import StageConfig, TrainConfig
    from uniavgen.train.launch import StageResult

POLL_S = 0.5
"""Seconds between two looks at what the training ranks wrote."""

GUIDANCES = ("none", "modality-aware")
"""Guidance of validation videos."""


PRESETS = (
    "tiny (minutes on two CPU cores), talk (a talking face on two CPU cores), laptop (a night on one GPU), "
    "paper (a GPU cluster)"
)


def train(
    stage: Annotated[str, typer.Argument(help="audio, joint, multitask, or all.", metavar="STAGE")],
    corpus: CorpusOption,
    run: RunOption,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Continue a stage although its settings were changed."),
    ] = False,
    name: NameOption = "",
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Size of the model: tiny, talk, laptop or paper; needed to begin.",
            metavar="NAME",
        ),
    ] = None,
) -> None:
    """Train a stage, or all stages, with DeepSpeed on Ray Train.

    A finished stage is not trained again; an interrupted one continues from its last checkpoint.

    Example: uniavgen train all --corpus data/corpus --run data/run --preset laptop
    """
    size_is_known = preset is not None or config is not None or any(run.glob("*/stage.json"))
    if not size_is_known and sys.stdin.isatty():
        preset = typer.prompt(f"Preset: {PRESETS}", default="tiny", err=True)
        size_is_known = True

    def body(settings: Config) -> dict[str, Any]:
        from uniavgen.shards.errors import UsageError

        if not size_is_known:
            raise UsageError("name the size to train", where="--preset", hint=f"one of: {PRESETS}")
        settings.tracking.name = name or settings.tracking.name
        label = f"preset {preset or 'tiny'}" + (f" and {config}" if config else "")
        return train_stages(stage, corpus, run, settings, accept_changes=accept_changes, label=label)

    run_command(body, preset or "tiny", config, set_, json_)


def train_stages(
    stage: str,
    root: Path,
    run_dir: Path,
    settings: Config,
    *,
    accept_changes: bool = False,
    label: str = "preset tiny",
) -> dict[str, Any]:
    """Train one stage, or `all` in the configured order. Raises UsageError for an unknown stage.

    `label` says where the settings come from; it is printed with the size of the model.
    """
    from uniavgen.shards.errors import UsageError, choice_hint

    stages = [entry.name for entry in settings.train.stages]
    if stage != "all" and stage not in stages:  # before the imports, which take seconds
        raise UsageError(f"unknown stage {stage!r}", hint=choice_hint(stage, [*stages, "all"]))
    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.planning.restrictions import training_restrictions, warn
    from uniavgen.orchestration.tracking.corpus_run import corpus_version
    from uniavgen.orchestration.tracking.run_notes import training_note
    from uniavgen.orchestration.tracking.stage_record import Record, recorded
    from uniavgen.shards.cluster import ray_running
    from uniavgen.shards.corpus.tables import Corpus
    from uniavgen.shards.heartbeat import Heartbeat
    from uniavgen.train.checkpoint.run_folder import RunFolder
    from uniavgen.train.checkpoint.run_lock import ALIVE_FILE, only_driver
    from uniavgen.train.launch import check_stages

    names = stages if stage == "all" else [stage]
    # stages on Emilia's audio shards read no clip: the corpus, which names the run's data, may be empty
    audio_only = all(settings.train.stage(name).emilia.shards for name in names)
    corpus = Corpus.create(root) if audio_only else Corpus.open(root)
    done = check_stages(
        settings.train, names, _shards_url(corpus, settings), run_dir, accept_changes=accept_changes
    )
    if not done and any(settings.train.stage(name).has_video for name in names):
        _prepare_codec(_shards_url(corpus, settings), run_dir, settings.train)
    if not done:
        warn(training_restrictions(settings.train))
        console.print_line(f"training with {label}: {describe_size(settings.train, names)}")
    workers = nullcontext() if done else ray_running()  # finished stages need no workers
    note = partial(training_note, settings.train, run_dir, str(root))
    run_name = settings.tracking.run_name("training", run_dir)
    parent = Record(settings.tracking, run_dir, run_name, partial(_log_configuration, settings), note)
    results = []
    with only_driver(run_dir), Heartbeat(run_dir / ALIVE_FILE), recorded(parent), workers:
        for name in names:
            if not (folder := RunFolder(run_dir, name)).done:
                folder.write(corpus_version=corpus_version(corpus))
            parent.describe()
            results.append(_train_stage(name, corpus, run_dir, settings, parent, accept_changes))
    console.table(
        f"training in {run_dir}",
        ("stage", "steps", "loss before", "loss after", "samples/s", "seconds", ""),
        [_result_row(result) for result in results],
    )
    return {
        "command": "train",
        "run": str(run_dir),
        "stages": [dataclasses.asdict(result) for result in results],
    }


def _prepare_codec(shards_url: str, run_dir: Path, config: TrainConfig) -> None:
    """Fit the video codec if the configuration names one that is fitted, and keep it in the run folder."""
    from uniavgen.orchestration.output import console
    from uniavgen.train.codec.registry import VIDEO_CODECS

    if not VIDEO_CODECS[config.data.codecs.video].fitted:
        return
    from uniavgen.train.data.codec_fitting import ensure_codec, keep_in_run

    keep_in_run(ensure_codec(shards_url, config.data, console.print_line), run_dir)


def describe_size(config: TrainConfig, stages: Sequence[str]) -> str:
    """Parameters, stages and workers in one line."""
    from uniavgen.train.planning import parameter_counts

    total = sum(parameter_counts(config.model).values())
    steps = ", ".join(f"{name} {config.stage(name).steps:,} x {config.stage(name).batch}" for name in stages)
    workers = f"{config.workers} worker{'s' if config.workers > 1 else ''}"
    return f"{total / 1e6:,.1f} M parameters; steps x batch: {steps}; {workers} (device {config.device})"


def make_validation_videos(
    stage: str, shards_url: str, run_dir: Path, settings: Config, seed: int = 0, *, remake: bool = True
) -> Path | None:
    """Generate clips of val with a stage's model: every task, with and without guidance.

    Writes `<stage>/validation/<task>-<clip>-<guidance>.mp4` and `.png`, and returns that folder. Without
    `remake` only missing ones are generated. The noise is the same for all, so that they differ by task, clip
    and guidance alone. Returns None if none are configured, the stage generates no video, or nothing was
    missing.
    """
    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.output.video_file import write_contact_sheet, write_video
    from uniavgen.shards.errors import UserError
    from uniavgen.shards.read.stream import SampleStream
    from uniavgen.train.generation import ClipGenerator, choose_device, conditions_from
    from uniavgen.train.tasks import Task

    config, count = settings.train.stage(stage), settings.train.validation.films
    if not count or not config.has_video:
        return None
    stream, folder = SampleStream(shards_url, "val"), run_dir / stage / "validation"
    tasks = [task for task in Task if config.tasks.get(task)]
    videos = [
        (folder / f"{task}-{key}-{guidance}.mp4", key, task, guidance)
        for key, task, guidance in product(stream.keys[:count], tasks, GUIDANCES)
    ]
    missing = [video for video in videos if remake or not video[0].with_suffix(".png").is_file()]
    if not missing:
        return None
    opened = closing(ClipGenerator(run_dir, stage, choose_device(settings.train.device)))
    with opened as generator, console.progress(f"{stage}: validation videos", len(missing)) as bar:
        for key, of_clip in groupby(missing, key=lambda video: video[1]):
            conditions = conditions_from(stream.sample_by_key(key), settings.train.data, seed)
            for path, _, task, guidance in of_clip:
                sampler = settings.sample.model_copy(update={"guidance": guidance})
                try:
                    generated = generator.generate(task, conditions, sampler, seed)
                except UserError as error:
                    if error.kind not in ("short-clip", "missing-condition"):
                        raise
                    console.print_line(
                        f"no validation video of {task} from clip {key}: {error.what}", "yellow"
                    )
                    bar.advance()
                    continue
                write_video(
                    path,
                    generated.frames,
                    generated.frames.shape[1:3],
                    generated.waveform,
                    fps=generated.fps,
                    sample_rate=generated.sample_rate,
                )
                # last, because it marks the video as complete
                write_contact_sheet(path.with_suffix(".png"), generated.frames)
                bar.advance()
    return folder


def _shards_url(corpus: Corpus, settings: Config) -> str:
    """Where training reads shards: the configured copy, else the corpus's own."""
    return settings.train.data.shards or str(corpus.root / "shards")


def _train_stage(
    name: str, corpus: Corpus, run_dir: Path, settings: Config, parent: Record, accept_changes: bool
) -> StageResult:
    """Train one stage as a child run, which ends as FAILED if the stage fails."""
    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.tracking.corpus_run import corpus_version
    from uniavgen.orchestration.tracking.mlflow_runs import system_metrics
    from uniavgen.orchestration.tracking.run_notes import stage_note
    from uniavgen.orchestration.tracking.stage_record import StageRecord, recorded
    from uniavgen.train.checkpoint.run_folder import RunFolder
    from uniavgen.train.launch import run_stage

    version, stage, url = corpus_version(corpus), settings.train.stage(name), _shards_url(corpus, settings)
    shards = stage.emilia.shards or [url]
    log_inputs = partial(_log_stage_inputs, parent, corpus, version, settings, stage, shards)
    note = partial(stage_note, settings.train, name, run_dir, shards, version)
    run_name = f"stage {name} of {parent.name.removeprefix('training ')}"
    child = StageRecord(settings.tracking, run_dir / name, run_name, log_inputs, note, parent)
    with recorded(child) as record:
        done = RunFolder(run_dir, name).done
        with (
            _show_progress(name, stage.steps, record.log),
            system_metrics(record.run, 0 if done else settings.tracking.system_metrics_s),
        ):
            result = run_stage(
                settings.train, name, url, run_dir, record.logger, accept_changes=accept_changes
            )
        record.log_result(result)
        if videos := _try_validation_videos(name, url, run_dir, settings, remake=result.ran):
            record.log_validation_videos(videos)
    for line in result.key_report:
        console.print_line(f"  {line}", style="dim")
    return result


def _log_configuration(settings: Config, run: Run) -> None:
    """The resolved settings as an artifact of the parent run."""
    import yaml

    resolved = settings.model_dump(mode="json", include={"train", "sample"})
    run.text(yaml.safe_dump(resolved, sort_keys=False), "configuration.yaml")


def _log_stage_inputs(
    parent: Record,
    corpus: Corpus,
    version: str,
    settings: Config,
    stage: StageConfig,
    shards: list[str],
    run: Run,
) -> None:
    """The corpus as input of the stage's run and of its parent, and the stage's settings as parameters."""
    from uniavgen.orchestration.tracking.mlflow_runs import flatten

    for consumer in filter(None, (parent.run, run)):
        consumer.dataset(corpus, version, {"shards": shards})
    of_stage = flatten(stage.model_dump(mode="json", exclude={"name"}), "stage.")
    common = flatten(settings.train.model_dump(mode="json", exclude={"stages"}), "train.")
    run.params({"stage": stage.name, "corpus_version": version} | of_stage | common)


def _try_validation_videos(
    stage: str, url: str, run_dir: Path, settings: Config, *, remake: bool
) -> Path | None:
    """`make_validation_videos`, with a warning instead of an error: the stage is finished either way."""
    from uniavgen.orchestration.output import console

    try:
        return make_validation_videos(stage, url, run_dir, settings, remake=remake)
    except Exception as error:
        console.print_warning(
            f"not all validation videos of stage {stage} were made ({console.first_line(error)}); "
            "the same command makes the missing ones"
        )
        return None


@contextmanager
def _show_progress(name: str, steps: int, log: Path) -> Iterator[None]:
    """Show steps, loss and events while the block runs, by reading the files that the ranks append to."""
    from uniavgen.orchestration.output import console
    from uniavgen.shards.jsonl import read_rows

    finished, events = threading.Event(), log.with_name("events.jsonl")
    # lines of earlier processes were shown before
    offsets = {path: path.stat().st_size if path.is_file() else 0 for path in (events, log)}
    with console.progress(f"{name}: starting workers", steps) as bar:

        def new_rows(path: Path) -> list[dict[str, Any]]:
            batch = read_rows(path, offsets[path])
            offsets[path] = batch.end
            return batch.rows

        def show_events() -> None:
            for event in new_rows(events):
                bar.print_warning(f"  {event['text']}")

        def poll() -> None:
            while not finished.wait(POLL_S):
                show_events()
                if rows := [row for row in new_rows(log) if "loss/total" in row]:
                    bar.update(rows[-1]["step"], label=f"{name}: loss {rows[-1]['loss/total']:.3f}")

        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
            show_events()


def _result_row(result: StageResult) -> tuple[Any, ...]:
    losses = [
        ", ".join(f"{part} {loss:.3f}" for part, loss in values.items())
        for values in (result.fixed_start, result.fixed_end)
    ]
    return (
        result.stage,
        result.steps,
        *losses,
        round(result.samples_per_s, 2),
        round(result.wall_seconds, 1),
        "" if result.ran else "finished before",
    )
