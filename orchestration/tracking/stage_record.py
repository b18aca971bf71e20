"""MLflow runs of a training that tolerate an unreachable tracker.

A training has one run, and each stage a child run. A run is opened at the start; if the tracker does not
answer then, it is opened at the start or the end of a stage, or by the next `uniavgen train`, which also
sends the metrics that waited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from uniavgen.orchestration.tracking.mlflow_runs import Run, fail_fast, open_run, warn_on_error
from uniavgen.orchestration.tracking.step_log import Backlog, StepLogger

if TYPE_CHECKING:
    from uniavgen.orchestration.tracking.config import TrackingConfig
    from uniavgen.train.launch import StageResult


@dataclass
class Record:
    """A run that may not be open yet.

    `log_inputs` is called once on the new run. `note` returns the description for an error message ("" for
    none).
    """

    config: TrackingConfig
    home: Path
    name: str
    log_inputs: Callable[[Run], None]
    note: Callable[[str], str]
    parent: Record | None = None
    run: Run | None = None

    def open(self) -> Run | None:
        """The run, opened if needed; None while the tracker does not answer."""
        if self.run or (self.parent and not self.parent.open()):
            return self.run
        with warn_on_error(self.label):
            self.run = open_run(
                self.config,
                self.home,
                self.name,
                self.note(""),
                parent=self.parent.run if self.parent else None,
            )
            self.log_inputs(self.run)
            self.run.describe(self.note)
        return self.run

    @property
    def label(self) -> str:
        """What the warning says was not recorded."""
        return f"the run of {self.name}"

    def describe(self) -> None:
        """Update the description."""
        if run := self.open():
            run.describe(self.note)

    def end(self, error: BaseException | None) -> None:
        """Describe and end the run; `error` is what ended the work, None if it succeeded."""
        if run := self.open():
            run.describe(self.note, error)
            run.end(type(error) if error else None)


@dataclass
class StageRecord(Record):
    """The run of a stage; `home` is the stage's folder."""

    @property
    def label(self) -> str:
        return f"{self.name}; its metrics are kept in {self.log}"

    @property
    def log(self) -> Path:
        """The file that gets every metric first."""
        return (self.home / "metrics.jsonl").absolute()

    @property
    def logger(self) -> StepLogger:
        return StepLogger(self.run, self.log)

    def end(self, error: BaseException | None) -> None:
        """Send the metrics that wait, then describe and end the run."""
        if run := self.open():
            with warn_on_error(f"all metrics of {self.log}; the next run of this stage sends the others"):
                Backlog(run, self.log).send()
        super().end(error)

    def log_result(self, result: StageResult) -> None:
        """Record the stage's outcome, and its weights as the next version of the registered model."""
        run = self.open()
        if not run:
            return
        stage = self.home.name
        with warn_on_error(f"the outcome of {self.name}"):
            run.params({f"parameters.{part}": count for part, count in result.parameters.items()})
            speed = {"samples_per_s": result.samples_per_s, "data_wait_share": result.data_wait_share}
            run.metrics({f"outcome/{name}": value for name, value in speed.items()})
            losses = {f"loss_{name}": value for name, value in result.fixed_end.items()}
            if self.parent and self.parent.run:
                self.parent.run.metrics(
                    {f"{stage}/{name}": value for name, value in (speed | losses).items()}
                )
            model = self.config.registered_model
            # a tracker that was down when the stage ended has no version yet
            if model and (result.ran or not run.has_registered_model(model)):
                run.register_model(model, result.weights, stage, self.note(""))

    def log_validation_videos(self, folder: Path) -> None:
        """Store the stage's validation videos as artifacts."""
        run = self.open()
        with warn_on_error(f"the validation videos of {self.name}; they are in {folder}"):
            if run:
                run.artifact(folder, "validation")


Kind = TypeVar("Kind", bound=Record)


@contextmanager
def recorded(record: Kind) -> Iterator[Kind]:
    """Open the run, and end it at the end of the block."""
    fail_fast()  # training workers with their GPUs would wait for the client
    record.open()
    try:
        yield record
    except BaseException as error:
        record.end(error)
        raise
    record.end(None)
