"""What the workers of one run tell each other and the driver: which step runs where, what it cost, who has which content.

Goes in: calls from the workers. Comes out: counts by step for the display, and for a content the URI that came first.
`Board` is a plain class; in a run it lives in one small Ray actor. `Reporter` is a worker's end of it, and also keeps Ray's
metrics (`uniavgen_*`), which Ray exports to Prometheus and its dashboard.
"""

from __future__ import annotations

import time
from typing import Any

from uniavgen.ingest.engine.progress import StepProgress, StepSummary
from uniavgen.ingest.engine.step_graph import STEP_NAMES


class Board:
    """Counts of one run. `known` are the contents of the corpus: source_id -> URI."""

    def __init__(self, known: dict[str, str] | None = None) -> None:
        self._steps = {name: StepSummary() for name in STEP_NAMES}
        self._running: dict[str, tuple[str, float]] = {}
        self._first = dict(known or {})
        self._copies = 0

    def claim(self, source_id: str, uri: str, instead_of: str = "") -> str:
        """The URI that this content belongs to: the first that asked, or `uri` where it replaces `instead_of`."""
        first = self._first.setdefault(source_id, uri)
        if first == instead_of:
            self._first[source_id] = first = uri
        return first

    def refused(self, uri: str) -> None:
        """A source is a copy: it comes to no further step."""
        self._copies += 1

    def reused(self, names: list[str]) -> None:
        """Results of one source that were stored already."""
        for name in names:
            self._steps[name].reused += 1

    def began(self, uri: str, step: str) -> None:
        self._running[uri] = (step, time.monotonic())

    def ended(
        self,
        uri: str,
        seconds: dict[str, float],
        video_s: float,
        failed: str = "",
        kind: str = "",
        again: bool = False,
    ) -> None:
        """A source's step is over, with the time of all that was measured in it; `failed` names the step that did, if any.

        What one stage did already, another may have to do again on its machine: that is no second source, but its time counts.
        """
        self._running.pop(uri, None)
        for name, spent in seconds.items():
            step = self._steps[name]
            step.seconds += spent
            if again:
                continue
            if name == failed:
                step.failed += 1
            else:
                step.done += 1
                step.video_seconds += video_s

    def steps(self, sources: int) -> tuple[StepProgress, ...]:
        """Every step so far, in order; `sources` is how many this run is about."""
        now = time.monotonic()
        running: dict[str, list[float]] = {name: [] for name in STEP_NAMES}
        for current, since in self._running.values():
            running[current].append(now - since)
        # who is through with a later step does not wait for this one: some steps run only where a later one asks for them
        through = dict.fromkeys(STEP_NAMES, 0)
        later = 0
        for name in reversed(STEP_NAMES):
            step = self._steps[name]
            through[name] = max(step.done + step.reused, later)
            later = through[name] + step.failed
        lost = self._copies
        shown = []
        for name, step in self._steps.items():
            lost += step.failed
            spent = step.seconds + sum(running[name])
            queued = max(0, sources - lost - through[name] - len(running[name]))
            shown.append(
                StepProgress(
                    name, step.done, len(running[name]), queued, step.failed, spent, step.video_seconds
                )
            )
        return tuple(shown)

    def totals(self) -> dict[str, StepSummary]:
        return self._steps


class Reporter:
    """A worker's end: tells the board (a Ray actor's handle), never waits for it, and counts in Ray's metrics."""

    def __init__(self, board: Any) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        self._board = board
        self._done = Counter("uniavgen_steps_done", "sources that a step has measured", ("step",))
        self._failed = Counter("uniavgen_failures", "sources that failed", ("step", "kind"))
        self._video = Counter(
            "uniavgen_video_seconds", "length of the sources that a step has measured", ("step",)
        )
        self._running = Gauge("uniavgen_steps_running", "workers that are in a step now", ("step",))
        self._step = ""
        edges = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
        self._seconds = Histogram(
            "uniavgen_step_seconds", "working time of a step on one source", edges, ("step",)
        )

    def claim(self, source_id: str, uri: str, instead_of: str = "") -> str:
        import ray

        first: str = ray.get(self._board.claim.remote(source_id, uri, instead_of))
        return first

    def refused(self, uri: str) -> None:
        self._board.refused.remote(uri)

    def reused(self, names: list[str]) -> None:
        self._board.reused.remote(names)

    def began(self, uri: str, step: str) -> None:
        self._board.began.remote(uri, step)
        self._step = step
        self._running.set(1, {"step": step})

    def ended(
        self,
        uri: str,
        seconds: dict[str, float],
        video_s: float,
        failed: str = "",
        kind: str = "",
        again: bool = False,
    ) -> None:
        self._board.ended.remote(uri, seconds, video_s, failed, kind, again)
        if self._step:
            self._running.set(0, {"step": self._step})
        for name, spent in seconds.items():
            self._seconds.observe(spent, {"step": name})
            if again:
                continue
            if name == failed:
                self._failed.inc(1, {"step": name, "kind": kind})
            else:
                self._done.inc(1, {"step": name})
                if video_s > 0:  # a counter takes no zero
                    self._video.inc(video_s, {"step": name})
