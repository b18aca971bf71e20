"""Metrics of a stage: first a line in `metrics.jsonl`, then MLflow.

The first training rank writes one line per call: step, time, values. `metrics.sent` holds how many bytes of
the file each MLflow run has, so that another tracker gets all of them. A thread sends the lines, so training
never waits for the tracker. Lines that were not sent when the process ended are sent by the next one
(`Backlog.send`).
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uniavgen.orchestration.output.console import first_line
from uniavgen.orchestration.tracking.mlflow_runs import Run, fail_fast
from uniavgen.shards.jsonl import append_row, read_rows

SMOOTHED = ("loss/", "task/")
"""Prefixes of metrics that are also logged smoothed."""
DECAY = 0.98
"""Decay of the exponential moving average: about the last 50 steps count. Heuristic."""
BATCH = 500
"""Maximum number of lines that are read and sent at once."""
MAX_PAUSE_S = 60.0
"""Longest pause between two attempts to reach the tracker."""


@dataclass(frozen=True)
class Backlog:
    """The lines of a metrics file that MLflow does not have yet."""

    run: Run
    log: Path

    @property
    def offset_file(self) -> Path:
        """The file with the number of bytes of the log that were sent, by run."""
        return self.log.with_suffix(".sent")

    def send(self) -> int:
        """Send the waiting lines, oldest first, and return their number.

        Raises what MLflow raises; lines sent before the error count as sent.
        """
        count = 0
        while (batch := read_rows(self.log, self.offset(), BATCH)).end > self.offset():
            if batch.damaged:
                print(f"warning: {batch.damaged} damaged lines of {self.log} are skipped", flush=True)
            self.run.metrics_of_steps(
                [(row.pop("step"), row.pop("time", time.time()), row) for row in batch.rows]
            )
            unfinished = self.offset_file.with_suffix(".part")
            marks = self._marks() | {self._target: batch.end}
            unfinished.write_text(json.dumps(marks) + "\n")
            os.replace(unfinished, self.offset_file)
            count += len(batch.rows)
        return count

    @property
    def _target(self) -> str:
        return f"{self.run.uri} {self.run.id}"

    def offset(self) -> int:
        """Bytes of the log that the run has."""
        return self._marks().get(self._target, 0)

    def _marks(self) -> dict[str, int]:
        """Bytes that were sent, by run. Until 0.4 the file held one number, of the run in tracking.json."""
        try:
            content = json.loads(self.offset_file.read_text())
        except (OSError, ValueError):
            return {}
        if isinstance(content, dict):
            return {str(target): int(count) for target, count in content.items()}
        note = self.log.with_name("tracking.json")
        # a note that is younger than the mark names another run
        known = note.is_file() and note.stat().st_mtime <= self.offset_file.stat().st_mtime
        return {self._target: int(content)} if known else {}


@dataclass(frozen=True)
class StepLogger:
    """Picklable factory of the trainer's `on_metrics`: the first training rank calls it to get the function.

    Without a run the lines wait in the file.
    """

    run: Run | None
    log: Path

    def __call__(self) -> Callable[[int, dict[str, float]], None]:
        fail_fast()  # the sending thread repeats failed requests, not the client
        new_lines, smoothed = threading.Event(), read_smoothed(self.log)
        if self.run:
            threading.Thread(
                target=_send_in_background, args=(Backlog(self.run, self.log), new_lines), daemon=True
            ).start()

        def on_metrics(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                if name.startswith(SMOOTHED) and math.isfinite(value):
                    before = smoothed.get(name, value)
                    smoothed[name] = DECAY * before + (1 - DECAY) * value
            averages = {f"smoothed/{name}": smoothed[name] for name in values if name in smoothed}
            append_row(self.log, {"step": step, "time": time.time(), **values, **averages})
            new_lines.set()

        return on_metrics


def read_smoothed(log: Path) -> dict[str, float]:
    """Latest smoothed metrics in the log, without the prefix `smoothed/`: a resumed stage continues them."""
    latest: dict[str, float] = {}
    end = -1
    while (batch := read_rows(log, max(end, 0), BATCH)).end > end:
        end = batch.end
        for row in batch.rows:
            latest |= {
                name.removeprefix("smoothed/"): value
                for name, value in row.items()
                if name.startswith("smoothed/")
            }
    return latest


def _send_in_background(backlog: Backlog, new_lines: threading.Event) -> None:
    """Send whenever there are new lines. While the tracker does not answer, retry with growing pauses."""
    pause = 0.0
    while True:
        new_lines.wait()
        new_lines.clear()
        try:
            backlog.send()
        except Exception as error:  # no error of the tracker may stop the training
            if not pause:
                print(
                    f"warning: MLflow does not accept metrics ({first_line(error)}); "
                    f"they are kept in {backlog.log} and sent later",
                    flush=True,
                )
            pause = min(MAX_PAUSE_S, max(1.0, 2 * pause))
            time.sleep(pause)
            new_lines.set()
            continue
        if pause:
            print("MLflow answers again and has all metrics", flush=True)
        pause = 0.0
