"""Progress of an ingest run: what workers report, what the display shows, and the summary at the end.

`RunState` counts in one small Ray actor. Each worker sends to it through a `Reporter`, which also updates
Ray's metrics (`uniavgen_*`); the driver reads it through `LiveProgress`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from uniavgen.ingest.records import SourceRecord

PROGRESS_INTERVAL_S = 0.5


@dataclass(frozen=True)
class StepProgress:
    """One step so far, over all workers. `done` counts sources measured in this run, not reused results."""

    name: str
    done: int = 0
    running: int = 0
    queued: int = 0
    """Sources that have not reached this step."""
    failed: int = 0
    seconds: float = 0.0
    """Working time, summed over all workers."""
    video_seconds: float = 0.0
    """Length of the sources that are done."""


@dataclass(frozen=True)
class Progress:
    """One ingest run so far. Sources that an earlier run committed are not counted."""

    done: int
    """Sources committed or about to be committed, failed ones included."""
    total: int
    clips: int
    video_seconds: float
    failures: dict[str, int]
    """Failed sources by kind."""
    elapsed_s: float
    steps: tuple[StepProgress, ...] = ()
    """In the order of the steps."""
    latest: str = ""
    """URI of the source that ended last."""
    failure: str = ""
    """Its failure message; empty if it succeeded."""


@dataclass
class StepSummary:
    """One step over a whole run."""

    done: int = 0
    reused: int = 0
    """Sources whose result an earlier run had stored."""
    failed: int = 0
    seconds: float = 0.0
    video_seconds: float = 0.0


@dataclass
class FailureTotals:
    """Failures of one kind: number of sources, their clip proposals and their length, as far as known; or, of
    clips that failed alone, number and length of these.
    """

    sources: int = 0
    clips: int = 0
    video_seconds: float = 0.0


@dataclass
class IngestSummary:
    """Outcome of one ingest run. Seconds by step are summed over all workers."""

    sources: int = 0
    clips: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """Sources by kind of failure, without duplicates."""
    failed: dict[str, str] = field(default_factory=dict)
    """Message by URI."""
    failed_clips: dict[str, str] = field(default_factory=dict)
    """Message by clip_id, for clips that failed alone; their sources are done."""
    lost: dict[str, FailureTotals] = field(default_factory=dict)
    """By kind of failure."""
    skipped_done: int = 0
    skipped_failed: int = 0
    skipped_failed_clips: int = 0
    """Clips of done sources that failed before."""
    duplicates: dict[str, str] = field(default_factory=dict)
    """URI of the duplicate -> URI of the source with the same content."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """Files of the named folders that were not ingested -> reason."""
    video_seconds: float = 0.0
    clip_seconds: float = 0.0
    seconds: float = 0.0
    start_seconds: float = 0.0
    """Time until the first source ended, most of it for loading models."""
    steps: dict[str, StepSummary] = field(default_factory=dict)
    """In the order of the steps."""
    step_seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class RunState:
    """Counts of one run by step, and which URI owns which content."""

    def __init__(self, steps: Sequence[str], known: dict[str, str] | None = None) -> None:
        """`known` maps source_id -> URI of the corpus."""
        self._steps = {name: StepSummary() for name in steps}
        self._running: dict[str, tuple[str, float]] = {}
        self._owners = dict(known or {})
        self._duplicates = 0

    def claim(self, source_id: str, uri: str, instead_of: str = "") -> str:
        """The URI that owns this content: the first that claimed it, or `uri` if `instead_of` owned it."""
        owner = self._owners.setdefault(source_id, uri)
        if owner == instead_of:
            self._owners[source_id] = owner = uri
        return owner

    def count_duplicate(self, uri: str) -> None:
        """A source is a duplicate: it reaches no further step."""
        self._duplicates += 1

    def count_reused(self, steps: list[str]) -> None:
        """Stored results of one source were reused."""
        for name in steps:
            self._steps[name].reused += 1

    def start_step(self, uri: str, step: str) -> None:
        self._running[uri] = (step, time.monotonic())

    def end_step(
        self,
        uri: str,
        seconds: dict[str, float],
        video_s: float,
        failed: str = "",
        kind: str = "",
        repeated: bool = False,
    ) -> None:
        """A source's step has ended. `failed` names the step, if it failed.

        `seconds` holds the time of every step that shared the pass. A step `repeated` in another pool, for
        its local file, counts its time but no further source.
        """
        self._running.pop(uri, None)
        for name, spent in seconds.items():
            step = self._steps[name]
            step.seconds += spent
            if repeated:
                continue
            if name == failed:
                step.failed += 1
            else:
                step.done += 1
                step.video_seconds += video_s

    def step_progress(self, sources: int) -> tuple[StepProgress, ...]:
        """Progress of every step in order, for a run over so many sources."""
        now = time.monotonic()
        running: dict[str, list[float]] = {name: [] for name in self._steps}
        for current, since in self._running.values():
            running[current].append(now - since)
        # a source past a later step does not wait for this one: on-demand steps may not run at all
        passed = dict.fromkeys(self._steps, 0)
        later = 0
        for name in reversed(self._steps):
            step = self._steps[name]
            passed[name] = max(step.done + step.reused, later)
            later = passed[name] + step.failed
        ended = self._duplicates
        progress = []
        for name, step in self._steps.items():
            ended += step.failed
            seconds = step.seconds + sum(running[name])
            queued = max(0, sources - ended - passed[name] - len(running[name]))
            progress.append(
                StepProgress(
                    name, step.done, len(running[name]), queued, step.failed, seconds, step.video_seconds
                )
            )
        return tuple(progress)

    def totals(self) -> dict[str, StepSummary]:
        return self._steps


class Reporter:
    """A worker's connection to the `RunState` actor. Sends without waiting, and updates Ray's metrics."""

    def __init__(self, run_state: Any) -> None:
        """`run_state` is the actor's handle."""
        from ray.util.metrics import Counter, Gauge, Histogram

        self._run_state = run_state
        self._done = Counter("uniavgen_steps_done", "sources that a step has measured", ("step",))
        self._failed = Counter("uniavgen_failures", "sources that failed", ("step", "kind"))
        self._video = Counter(
            "uniavgen_video_seconds", "length of the sources that a step has measured", ("step",)
        )
        self._running = Gauge("uniavgen_steps_running", "workers that run a step now", ("step",))
        self._step = ""
        edges = [0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000]
        self._seconds = Histogram(
            "uniavgen_step_seconds", "working time of a step on one source", edges, ("step",)
        )

    def claim(self, source_id: str, uri: str, instead_of: str = "") -> str:
        import ray

        owner: str = ray.get(self._run_state.claim.remote(source_id, uri, instead_of))
        return owner

    def count_duplicate(self, uri: str) -> None:
        self._run_state.count_duplicate.remote(uri)

    def count_reused(self, steps: list[str]) -> None:
        self._run_state.count_reused.remote(steps)

    def start_step(self, uri: str, step: str) -> None:
        self._run_state.start_step.remote(uri, step)
        self._step = step
        self._running.set(1, {"step": step})

    def end_step(
        self,
        uri: str,
        seconds: dict[str, float],
        video_s: float,
        failed: str = "",
        kind: str = "",
        repeated: bool = False,
    ) -> None:
        self._run_state.end_step.remote(uri, seconds, video_s, failed, kind, repeated)
        if self._step:
            self._running.set(0, {"step": self._step})
        for name, spent in seconds.items():
            self._seconds.observe(spent, {"step": name})
            if repeated:
                continue
            if name == failed:
                self._failed.inc(1, {"step": name, "kind": kind})
            else:
                self._done.inc(1, {"step": name})
                if video_s > 0:  # a counter rejects 0
                    self._video.inc(video_s, {"step": name})


class LiveProgress:
    """The driver's side: starts the `RunState` actor and calls `on_progress` about twice a second."""

    def __init__(
        self,
        steps: Sequence[str],
        known: dict[str, str],
        total: int,
        summary: IngestSummary,
        on_progress: Callable[[Progress], None],
    ) -> None:
        """`known` maps source_id -> URI of the corpus; `total` is the number of sources of this run."""
        import ray

        actor = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(RunState)
        self.run_state: Any = actor.remote(steps, known)
        self._total, self._summary, self._on_progress = total, summary, on_progress
        self._started = self._reported = time.monotonic()
        self._done = 0

    def tick(self) -> None:
        """Report progress, if the interval has passed."""
        if time.monotonic() - self._reported >= PROGRESS_INTERVAL_S:
            self._report()

    def source_ended(self, record: SourceRecord) -> None:
        """A source is committed and counted in the summary."""
        if not self._done:
            self._summary.start_seconds = time.monotonic() - self._started
        self._done += 1
        self._report(record.uri, record.failure.message if record.failure else "")

    def totals(self) -> dict[str, StepSummary]:
        """Every step over the whole run."""
        import ray

        totals: dict[str, StepSummary] = ray.get(self.run_state.totals.remote())
        return totals

    def _report(self, latest: str = "", failure: str = "") -> None:
        import ray

        self._reported = time.monotonic()
        self._on_progress(
            Progress(
                done=self._done,
                total=self._total,
                clips=self._summary.clips,
                video_seconds=self._summary.video_seconds,
                failures=dict(self._summary.failures),
                elapsed_s=self._reported - self._started,
                steps=ray.get(self.run_state.step_progress.remote(self._total)),
                latest=latest,
                failure=failure,
            )
        )
