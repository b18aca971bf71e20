"""What an ingest tells while it runs, and when it is done.

`Progress` goes to `on_progress` about twice a second; `IngestSummary` is what `ingest` returns. Plain numbers, no Ray.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class StepProgress:
    """One step so far, over all workers. `done` counts sources measured now; stored results are not counted again."""

    name: str
    done: int = 0
    running: int = 0
    queued: int = 0
    """Sources that have not come to this step yet, or wait before it."""
    failed: int = 0
    seconds: float = 0.0
    """Working time, added up over all workers."""
    video_seconds: float = 0.0
    """Length of the sources that are done."""


@dataclass(frozen=True)
class Progress:
    """One ingest so far; sources that a former run committed are in none of the figures."""

    done: int
    """Sources committed or about to be, failed ones among them."""
    total: int
    clips: int
    video_seconds: float
    failures: dict[str, int]
    """Failed sources by kind."""
    elapsed_s: float
    steps: tuple[StepProgress, ...] = ()
    """In the order of the graph."""
    latest: str = ""
    """URI of the source that ended last."""
    failure: str = ""
    """Its message, where it failed."""


@dataclass
class StepSummary:
    """One step over a whole ingest."""

    done: int = 0
    reused: int = 0
    """Sources whose result an earlier run had stored."""
    failed: int = 0
    seconds: float = 0.0
    video_seconds: float = 0.0


@dataclass
class Lost:
    """What failed for one reason: sources, the clips that they were to give, and their length, as far as it was known."""

    sources: int = 0
    clips: int = 0
    video_seconds: float = 0.0


@dataclass
class IngestSummary:
    """What one ingest did. Seconds by step are added up over all workers."""

    sources: int = 0
    clips: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    """Sources by kind of failure; copies are not among them."""
    failed: dict[str, str] = field(default_factory=dict)
    """Message by URI."""
    lost: dict[str, Lost] = field(default_factory=dict)
    """By kind of failure."""
    skipped_done: int = 0
    skipped_failed: int = 0
    duplicates: dict[str, str] = field(default_factory=dict)
    """URI of the copy -> URI of the video with the same content. Each has a row in failures, kind `duplicate`."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """Files of the named folders that were not taken -> why."""
    video_seconds: float = 0.0
    clip_seconds: float = 0.0
    seconds: float = 0.0
    start_seconds: float = 0.0
    """From the start to the first source that ended: what loading took."""
    steps: dict[str, StepSummary] = field(default_factory=dict)
    """In the order of the graph."""
    step_seconds: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
