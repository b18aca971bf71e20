"""A stage's run in MLflow, which never stands in the way of training: what a tracker that is down does not take is kept.

In: the stage's folder, what is to be said of it, and its result. Out: a child run of the training's, opened at the start, else
at the stage's end, else by the next `uniavgen train` of that stage, which also sends the metrics that waited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.step_log import Backlog, StepLogger
from orchestration.tracking import Run, TrackingConfig, impatient, open_run, survivable

if TYPE_CHECKING:
    from train.launch import StageResult


@dataclass
class StageRecord:
    """`about` tells a run, once, what the stage is; `note` describes it as it stands, with the error that ended it or ""."""

    config: TrackingConfig
    home: Path
    stage: str
    parent: Run
    about: Callable[[Run], None]
    note: Callable[[str], str]
    run: Run | None = None

    @property
    def log(self) -> Path:
        """Where every metric goes first."""
        return (self.home / "metrics.jsonl").absolute()

    @property
    def logger(self) -> StepLogger:
        return StepLogger(self.run, self.log)

    def open(self) -> Run | None:
        """The run; None while the tracker does not answer."""
        if not self.run:
            with survivable(f"stage {self.stage}, whose metrics wait in {self.log}"):
                self.run = open_run(self.config, self.home, f"stage {self.stage}", parent=self.parent)
                self.about(self.run)
                self.run.describe(self.note)
        return self.run

    def end(self, error: BaseException | None) -> None:
        """Send what waits and say how the stage ended."""
        run = self.open()
        if not run:
            return
        with survivable(f"all metrics; the next run of this stage sends the rest of {self.log}"):
            Backlog(run, self.log).send()
        run.describe(self.note, error)
        run.end(type(error) if error else None)

    def finished(self, result: StageResult) -> None:
        """What the stage came to, and its weights as the next version of the registered model."""
        run = self.open()
        if not run:
            return
        with survivable(f"what stage {self.stage} came to"):
            run.params({f"parameters.{part}": count for part, count in result.parameters.items()})
            figures = {"samples_per_s": result.samples_per_s, "data_wait_share": result.data_wait_share}
            run.metrics({f"outcome/{name}": value for name, value in figures.items()})
            after = {f"loss_{name}": value for name, value in result.fixed_end.items()}
            self.parent.metrics({f"{self.stage}/{name}": value for name, value in (figures | after).items()})
            if result.ran and self.config.registered_model:
                run.register(self.config.registered_model, result.weights, self.stage)

    def films(self, folder: Path) -> None:
        """Store the films of val that the stage made."""
        run = self.open()
        with survivable(f"the films of stage {self.stage}, which stand in {folder}"):
            if run:
                run.artifact(folder, "validation")


@contextmanager
def recorded(record: StageRecord) -> Iterator[StageRecord]:
    """Open the stage's run, and end it as the block ends."""
    impatient()  # workers and their GPUs would wait for a client that waits for its server
    record.open()
    try:
        yield record
    except BaseException as error:
        record.end(error)
        raise
    record.end(None)
