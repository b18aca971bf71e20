"""A stage's metrics: lines of a file first, then MLflow's. A tracker that is down gets them once it answers again.

Goes in: steps and their figures, from the first training worker. Comes out: `metrics.jsonl`, one line a call with step, time
and figures, and how far MLflow has it in `metrics.sent`. A thread sends, so that training never waits for a tracker; what it
has not sent when the worker ends, or when that is killed, `Backlog.send` sends from whoever comes next.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uniavgen.orchestration.tracking.mlflow_runs import Run, impatient
from uniavgen.shards.jsonl import append_row, read_rows

SMOOTHED = ("loss/", "task/")
"""Beginnings of figures that are also logged smoothed."""
KEEP = 0.98
"""Share of the smoothed figure that a step keeps: about the last 50 steps count; our choice."""
BATCH = 500
"""Lines that are read and sent at once at most."""
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Backlog:
    """The lines of a metrics file that MLflow has not got yet."""

    run: Run
    log: Path

    @property
    def mark(self) -> Path:
        """The file that tells how many bytes of the log were sent."""
        return self.log.with_suffix(".sent")

    def send(self) -> int:
        """Send what waits, oldest first, and say how many lines that were. Raises what the tracker raises; what was sent
        before that stays sent."""
        count = 0
        while (found := read_rows(self.log, self._sent(), BATCH)).end > self._sent():
            if found.damaged:
                print(f"warning: {found.damaged} damaged lines of {self.log} are passed over", flush=True)
            self.run.metrics_of([(row.pop("step"), row.pop("time", time.time()), row) for row in found.rows])
            part = self.mark.with_suffix(".part")
            part.write_text(str(found.end))
            os.replace(part, self.mark)
            count += len(found.rows)
        return count

    def _sent(self) -> int:
        return int(self.mark.read_text()) if self.mark.is_file() else 0


@dataclass(frozen=True)
class StepLogger:
    """Builds the trainer's `on_metrics`: picklable, sent to the first worker, which calls it to get the function.

    Without a run the lines wait for whoever opens one.
    """

    run: Run | None
    log: Path

    def __call__(self) -> Callable[[int, dict[str, float]], None]:
        impatient()  # a tracker that does not answer is asked again by the thread, not by the client
        news, smooth = threading.Event(), last_smoothed(self.log)
        if self.run:
            threading.Thread(
                target=_keep_sending, args=(Backlog(self.run, self.log), news), daemon=True
            ).start()

        def on_metrics(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                if name.startswith(SMOOTHED) and math.isfinite(value):
                    known = smooth.get(name, value)
                    smooth[name] = KEEP * known + (1 - KEEP) * value
            smoothed = {f"smoothed/{name}": smooth[name] for name in values if name in smooth}
            append_row(self.log, {"step": step, "time": time.time(), **values, **smoothed})
            news.set()

        return on_metrics


def last_smoothed(log: Path) -> dict[str, float]:
    """Where the smoothed figures of an earlier process stand, without their prefix."""
    found: dict[str, float] = {}
    end = -1
    while (part := read_rows(log, max(end, 0), BATCH)).end > end:
        end = part.end
        for row in part.rows:
            found |= {
                name.removeprefix("smoothed/"): value
                for name, value in row.items()
                if name.startswith("smoothed/")
            }
    return found


def _keep_sending(backlog: Backlog, news: threading.Event) -> None:
    """Send whenever there is news; while the tracker is away, ask again after longer and longer pauses."""
    pause = 0.0
    while True:
        news.wait()
        news.clear()
        try:
            backlog.send()
        except Exception as error:  # any defect of the tracker is survivable
            if not pause:
                reason = (str(error).strip().splitlines() or ["no message"])[0][:200]
                print(
                    f"warning: MLflow does not take metrics ({reason}); {backlog.log} keeps them until it does",
                    flush=True,
                )
            pause = min(LONGEST_PAUSE_S, max(1.0, 2 * pause))
            time.sleep(pause)
            news.set()
            continue
        if pause:
            print("MLflow answers again and has all metrics", flush=True)
        pause = 0.0
