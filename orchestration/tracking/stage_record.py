"""The runs of a training in MLflow, which never stand in its way: what a tracker that is down does not take is kept.

In: the run folder or a stage's, what is to be said of it, and its result. Out: the training's run, and below it one of each
stage, opened at the start, else as soon as the tracker answers: at a stage's start or end, or by the next `uniavgen train`,
which also sends the metrics that waited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from uniavgen.orchestration.tracking.mlflow_runs import Run, TrackingConfig, impatient, open_run, survivable
from uniavgen.orchestration.tracking.step_log import Backlog, StepLogger

if TYPE_CHECKING:
    from uniavgen.train.launch import StageResult


@dataclass
class Record:
    """What a run is made of. `about` tells it, once, what it is; `note` describes it as it stands, with the error that ended
    it or ""; `parent` is the one above it."""

    config: TrackingConfig
    home: Path
    name: str
    about: Callable[[Run], None]
    note: Callable[[str], str]
    parent: Record | None = None
    run: Run | None = None

    def open(self) -> Run | None:
        """The run; None while the tracker does not answer."""
        if self.run or (self.parent and not self.parent.open()):
            return self.run
        with survivable(self.what):
            self.run = open_run(
                self.config, self.home, self.name, parent=self.parent.run if self.parent else None
            )
            self.about(self.run)
            self.run.describe(self.note)
        return self.run

    @property
    def what(self) -> str:
        """What the tracker did not take where it is away."""
        return f"the run of {self.name}"

    def describe(self) -> None:
        """Say anew how it stands."""
        if run := self.open():
            run.describe(self.note)

    def end(self, error: BaseException | None) -> None:
        """Say how it ended."""
        if run := self.open():
            run.describe(self.note, error)
            run.end(type(error) if error else None)


@dataclass
class StageRecord(Record):
    """A stage's run; `home` is the stage's folder."""

    @property
    def what(self) -> str:
        return f"{self.name}, whose metrics wait in {self.log}"

    @property
    def log(self) -> Path:
        """Where every metric goes first."""
        return (self.home / "metrics.jsonl").absolute()

    @property
    def logger(self) -> StepLogger:
        return StepLogger(self.run, self.log)

    def end(self, error: BaseException | None) -> None:
        """Send what waits and say how the stage ended."""
        if run := self.open():
            with survivable(f"all metrics; the next run of this stage sends the rest of {self.log}"):
                Backlog(run, self.log).send()
        super().end(error)

    def finished(self, result: StageResult) -> None:
        """What the stage came to, and its weights as the next version of the registered model."""
        run = self.open()
        if not run:
            return
        stage = self.home.name
        with survivable(f"what {self.name} came to"):
            run.params({f"parameters.{part}": count for part, count in result.parameters.items()})
            figures = {"samples_per_s": result.samples_per_s, "data_wait_share": result.data_wait_share}
            run.metrics({f"outcome/{name}": value for name, value in figures.items()})
            after = {f"loss_{name}": value for name, value in result.fixed_end.items()}
            if self.parent and self.parent.run:
                self.parent.run.metrics(
                    {f"{stage}/{name}": value for name, value in (figures | after).items()}
                )
            model = self.config.registered_model
            # a tracker that was down when the stage ended has none of it yet
            if model and (result.ran or not run.registered(model)):
                run.register(model, result.weights, stage)

    def films(self, folder: Path) -> None:
        """Store the films of val that the stage made."""
        run = self.open()
        with survivable(f"the films of {self.name}, which stand in {folder}"):
            if run:
                run.artifact(folder, "validation")


Kind = TypeVar("Kind", bound=Record)


@contextmanager
def recorded(record: Kind) -> Iterator[Kind]:
    """Open the run, and end it as the block ends."""
    impatient()  # workers and their GPUs would wait for a client that waits for its server
    record.open()
    try:
        yield record
    except BaseException as error:
        record.end(error)
        raise
    record.end(None)
