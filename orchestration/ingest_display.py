"""What a person sees of an ingest: one live display while it runs, tables by step and by failure when it is done.

Goes in: `Progress` about twice a second, an `IngestSummary` at the end. On a terminal the display moves; in a log it is a
plain line every ten seconds. Everything goes to stderr.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from uniavgen.orchestration import console

if TYPE_CHECKING:
    from types import TracebackType

    from uniavgen.ingest.engine.progress import IngestSummary, Progress, StepProgress

LINE_SECONDS = 10.0
"""How often a log gets a line."""

HISTORY = 4000
"""News that are kept for the forecast's pace: a run of weeks gets some every half second."""

FAILURES_TOLD = 20
"""Failures that are told one by one; the others are counted, and all are rows of the failures table."""

LONGEST_COMMAND = 400
"""Characters of sources that are repeated in a line to type."""

SHARE_WIDTH = 16


class IngestDisplay:
    """`with IngestDisplay() as display: ingest(..., on_progress=display.update)`."""

    def __init__(self, to: Console | None = None) -> None:
        self._console = to or console.console
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True)
            if self._console.is_terminal
            else None
        )
        self._progress: Progress | None = None
        self._began_work: float | None = None
        self._told_at = float("-inf")
        self._told: set[str] = set()
        self.history: list[tuple[float, float]] = []
        """(seconds since the start, seconds worked by all workers): the first and the latest news and others between, at most
        `HISTORY`, sparser the longer ago."""

    def __enter__(self) -> IngestDisplay:
        if self._live is not None:
            self._live.start()
            self._live.update(
                Text("ingest: looking for sources, starting workers", style="dim"), refresh=True
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._progress is not None:
            self._console.print(line(self._progress, self._left()))

    def update(self, progress: Progress) -> None:
        """Take the news; to be called from one thread."""
        self._progress = progress
        self.history.append((progress.elapsed_s, sum(step.seconds for step in progress.steps)))
        if len(self.history) > HISTORY:
            del self.history[1:-1:2]
        if self._began_work is None and self.history[-1][1]:
            self._began_work = progress.elapsed_s
        self._tell_failure(progress)
        if self._live is not None:
            self._live.update(view(progress, self._left()), refresh=True)
        elif time.monotonic() - self._told_at >= LINE_SECONDS:
            self._told_at = time.monotonic()
            self._console.print(line(progress, self._left()))

    def _left(self) -> float | None:
        if self._progress is None or self._began_work is None:
            return None
        return time_left_s(self._progress, self._began_work)

    def _tell_failure(self, progress: Progress) -> None:
        if not progress.failure or progress.latest in self._told:
            return
        self._told.add(progress.latest)
        if len(self._told) <= FAILURES_TOLD:
            self._console.print(Text(f"failed: {progress.failure}", style="yellow"))
        if len(self._told) == FAILURES_TOLD:
            self._console.print(
                Text("further failures are counted; each is a row of the failures table", style="yellow")
            )


def time_left_s(progress: Progress, began_work_s: float) -> float | None:
    """Seconds until all is done: the work that waits, at the rate at which work was done since `began_work_s`.

    A step's waiting sources are taken to cost what its finished ones did. None before any source was through every step
    that has work, since nothing is known of that step's cost then.
    """
    if progress.done >= progress.total:
        return 0.0
    elapsed = progress.elapsed_s - began_work_s
    done = sum(step.seconds for step in progress.steps)
    waiting = 0.0
    for step in progress.steps:
        rest = step.queued + step.running / 2  # a running one is half done, on average
        if rest and not step.done:
            return None
        waiting += rest * step.seconds / max(1, step.done)
    return waiting * elapsed / done if done > 0 and elapsed > 0 else None


def view(progress: Progress, left_s: float | None) -> Group:
    """The live display."""
    bar = Table.grid(padding=(0, 2), expand=False)
    ended = f"{progress.done:,} of {progress.total:,} sources"
    clock = f"{duration(progress.elapsed_s)}" + (
        f", about {duration(left_s)} left" if left_s is not None else ", time left unknown yet"
    )
    bar.add_row(
        Text("ingest", style="bold"),
        ProgressBar(total=1.0, completed=steps_done(progress), width=32, complete_style="cyan"),
        ended,
        clock,
    )
    speed = progress.video_seconds / max(progress.elapsed_s, 1e-9)
    facts = Text(f"{duration(progress.video_seconds)} of video at {speed:.2f} video s/s   ")
    facts.append(f"{progress.clips:,} clips", style="green").append("   ").append_text(
        failures_text(progress.failures)
    )
    return Group(
        bar,
        facts,
        Text(),
        step_table(progress.steps),
        Text(f"latest: {progress.latest}", style="dim", no_wrap=True, overflow="ellipsis"),
    )


def steps_done(progress: Progress) -> float:
    """Share 0..1 of all sources' steps that are over: it moves while nothing but one long source is measured."""
    over = sum(step.done + step.failed for step in progress.steps)
    left = sum(step.running + step.queued for step in progress.steps)
    return over / (over + left) if over + left else progress.done / max(1, progress.total)


def step_table(steps: Sequence[StepProgress]) -> Table:
    """A row a step: counts, how much faster than real time one worker is, and its share of all working time."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("step", "done", "running", "queued", "failed", "video s/s"):
        table.add_column(name, justify="left" if name == "step" else "right", no_wrap=True)
    table.add_column("share of work", no_wrap=True)
    total = sum(step.seconds for step in steps)
    for step in steps:
        share = step.seconds / total if total else 0.0
        cells = [
            Text(step.name, style="bold" if step.running else ""),
            Text(f"{step.done:,}"),
            Text(f"{step.running:,}" if step.running else "·", style="bold cyan" if step.running else "dim"),
            Text(f"{step.queued:,}" if step.queued else "·", style="" if step.queued else "dim"),
            Text(f"{step.failed:,}" if step.failed else "·", style="yellow" if step.failed else "dim"),
            Text(speed_text(step)),
        ]
        bar = Text(f"{share:4.0%} ", style="" if share >= 0.1 else "dim").append(
            "━" * round(share * SHARE_WIDTH), style="cyan"
        )
        table.add_row(*cells, bar)
    return table


def line(progress: Progress, left_s: float | None) -> str:
    """The display in one line, for a log."""
    running = ", ".join(f"{step.name} {step.running}" for step in progress.steps if step.running)
    parts = [
        f"ingest {progress.done}/{progress.total} sources, {steps_done(progress):.0%} of the steps",
        f"{progress.clips} clips",
        failures_text(progress.failures).plain,
        f"{progress.video_seconds / max(progress.elapsed_s, 1e-9):.2f} video s/s",
        duration(progress.elapsed_s) + (f", about {duration(left_s)} left" if left_s else ""),
    ]
    return "; ".join(parts) + (f"; running: {running}" if running else "")


def failures_text(failures: dict[str, int]) -> Text:
    """How many failed, and of what kinds, the commonest first."""
    if not failures:
        return Text("none failed", style="dim")
    kinds = sorted(failures.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{kind} {count:,}" for kind, count in kinds[:4]) + (", ..." if len(kinds) > 4 else "")
    return Text(f"{sum(failures.values()):,} failed ({told})", style="yellow")


def speed_text(step: StepProgress) -> str:
    """Seconds of video per working second of one worker."""
    return f"{step.video_seconds / step.seconds:,.1f}" if step.video_seconds and step.seconds else "-"


def duration(seconds: float) -> str:
    """Seconds as a clock shows them: 0:07, 12:40, 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def show_summary(summary: IngestSummary, sources: Sequence[str], corpus: str) -> None:
    """After an ingest: what came in, the cost by step, the losses by kind, and what to do next."""
    print_ = console.console.print
    print_(headline(summary), style="bold")
    if summary.steps and any(step.seconds for step in summary.steps.values()):
        columns = ("step", "sources", "reused", "failed", "seconds", "s per video-second", "share %")
        console.table("cost by step", columns, step_rows(summary))
    if summary.lost:
        console.table(
            "lost, by kind of failure", ("kind", "sources", "clips", "video hours"), lost_rows(summary)
        )
    if summary.passed_over:
        reasons = Counter(summary.passed_over.values()).most_common()
        print_("passed over: " + ", ".join(f"{count:,} × {why}" for why, count in reasons))
    if summary.duplicates:
        copy, first = sorted(summary.duplicates.items())[0]
        print_(
            f"{len(summary.duplicates)} copies of other sources, measured once (for example {copy} = {first})"
        )
    for hint in next_steps(summary, sources, corpus):
        print_(hint)


def headline(summary: IngestSummary) -> str:
    """One sentence on the whole run."""
    speed = summary.video_seconds / max(summary.seconds, 1e-9)
    parts = [f"ingested {summary.sources:,} sources ({duration(summary.video_seconds)} of video)"]
    parts.append(f"{summary.clips:,} clips ({duration(summary.clip_seconds)})")
    parts.append(f"{sum(summary.failures.values()):,} failed")
    if summary.skipped_done:
        parts.append(f"{summary.skipped_done:,} were done before")
    took = f"{duration(summary.seconds)}" + (
        f", the first source after {duration(summary.start_seconds)}" if summary.start_seconds else ""
    )
    return ", ".join(parts) + f"; {took}" + (f", {speed:.2f} video s/s" if summary.sources else "")


def step_rows(summary: IngestSummary) -> list[tuple[Any, ...]]:
    """A row a step: sources, stored results used again, failures, seconds, seconds per second of video, share of all work."""
    total = sum(step.seconds for step in summary.steps.values()) or 1.0
    rows: list[tuple[Any, ...]] = []
    for name, step in summary.steps.items():
        per_second = round(step.seconds / step.video_seconds, 4) if step.video_seconds else None
        rows.append(
            (
                name,
                step.done,
                step.reused,
                step.failed,
                round(step.seconds, 1),
                per_second,
                round(100 * step.seconds / total),
            )
        )
    video = summary.video_seconds
    whole = sum(step.seconds for step in summary.steps.values())
    return [
        *rows,
        ("all", None, None, None, round(whole, 1), round(whole / video, 4) if video else None, 100),
    ]


def lost_rows(summary: IngestSummary) -> list[tuple[Any, ...]]:
    """A row a kind of failure, the one that cost most video first."""
    kinds = sorted(summary.lost.items(), key=lambda item: (-item[1].video_seconds, -item[1].sources, item[0]))
    return [(kind, lost.sources, lost.clips, round(lost.video_seconds / 3600, 4)) for kind, lost in kinds]


def next_steps(summary: IngestSummary, sources: Sequence[str], corpus: str) -> list[str]:
    """Lines to run next, as they are typed."""
    named = (
        shlex.join(sources) if sum(map(len, sources)) < LONGEST_COMMAND else "..."
    )  # a shell's glob may name thousands
    again = f"uniavgen ingest {named} {shlex.join(['--corpus', corpus])}"
    hints = []
    if summary.failures:
        hints.append(f"try the failed ones again: {again} --retry")
    elif summary.skipped_failed:
        hints.append(
            f"{summary.skipped_failed:,} sources failed before and were left alone; try them: {again} --retry"
        )
    if summary.clips or summary.skipped_done:
        where = shlex.join(["--corpus", corpus])
        hints.append(f"decide and look: uniavgen curate {where} && uniavgen report {where}")
    return hints
