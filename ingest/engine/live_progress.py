"""How far a run is, told twice a second: the driver's end of the board.

Goes in: sources that ended, and what the workers write on the board. Comes out: `Progress` for `on_progress`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from uniavgen.ingest.engine.progress import IngestSummary, Progress, StepProgress, StepSummary
from uniavgen.ingest.engine.run_state import Board
from uniavgen.ingest.records import SourceRecord

TELL_S = 0.5


class Live:
    """One run's progress; makes the board's actor. `contents` are the corpus's sources, source_id -> URI."""

    def __init__(
        self,
        contents: dict[str, str],
        total: int,
        summary: IngestSummary,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        import ray

        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Board)
        self.board: Any = actor.remote(contents)
        self._total, self._summary, self._on_progress = total, summary, on_progress
        self._began = self._told = time.monotonic()
        self._done = 0
        self._steps: tuple[StepProgress, ...] = ()

    def tick(self) -> None:
        """Tell, if it is time to."""
        if time.monotonic() - self._told >= TELL_S:
            self._tell()

    def ended(self, record: SourceRecord) -> None:
        """A source is committed, and counted in the summary."""
        if not self._done:
            self._summary.start_seconds = time.monotonic() - self._began
        self._done += 1
        self._tell(record.uri, record.failure.message if record.failure else "")

    def totals(self) -> dict[str, StepSummary]:
        """Every step of the whole run."""
        import ray

        found: dict[str, StepSummary] = ray.get(self.board.totals.remote())
        return found

    def _tell(self, latest: str = "", failure: str = "") -> None:
        import ray

        self._told = time.monotonic()
        if self._on_progress is None:
            return
        self._steps = ray.get(self.board.steps.remote(self._total))
        self._on_progress(
            Progress(
                done=self._done,
                total=self._total,
                clips=self._summary.clips,
                video_seconds=self._summary.video_seconds,
                failures=dict(self._summary.failures),
                elapsed_s=self._told - self._began,
                steps=self._steps,
                latest=latest,
                failure=failure,
            )
        )
