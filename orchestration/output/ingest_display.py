"""Progress and summary of an ingest on stderr.

A terminal gets a live display; a log gets one line every ten seconds. At the end both get tables by step and
by failure.
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

from uniavgen.orchestration.output import console

if TYPE_CHECKING:
    from types import TracebackType

    from uniavgen.ingest.engine.progress import IngestSummary, Progress, StepProgress

LOG_INTERVAL_S = 10.0
"""Seconds between two lines in a log."""

MAX_HISTORY = 4000
"""Progress reports that are kept for the forecast: an ingest of weeks sends one every half second."""

MAX_FAILURE_LINES = 20
"""Failures that are printed one by one. All failures are counted, and all are rows of the failures table."""

MAX_COMMAND_LENGTH = 400
"""Characters of sources that are repeated in a command to type."""

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
        self._work_start_s: float | None = None
        self._last_line_at = float("-inf")
        self._failed: set[str] = set()
        self.history: list[tuple[float, float]] = []
        """(seconds since the start, working seconds of all workers): the first and the latest report and some
        between. At most `MAX_HISTORY`; older reports are farther apart."""

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
            self._console.print(log_line(self._progress, self._time_left_s()))

    def update(self, progress: Progress) -> None:
        """Show a progress report. Call it from one thread."""
        self._progress = progress
        self.history.append((progress.elapsed_s, sum(step.seconds for step in progress.steps)))
        if len(self.history) > MAX_HISTORY:
            del self.history[1:-1:2]
        if self._work_start_s is None and self.history[-1][1]:
            self._work_start_s = progress.elapsed_s
        self._print_failure(progress)
        if self._live is not None:
            self._live.update(live_view(progress, self._time_left_s()), refresh=True)
        elif time.monotonic() - self._last_line_at >= LOG_INTERVAL_S:
            self._last_line_at = time.monotonic()
            self._console.print(log_line(progress, self._time_left_s()))

    def _time_left_s(self) -> float | None:
        if self._progress is None or self._work_start_s is None:
            return None
        return time_left_s(self._progress, self._work_start_s)

    def _print_failure(self, progress: Progress) -> None:
        if not progress.failure or progress.latest in self._failed:
            return
        self._failed.add(progress.latest)
        if len(self._failed) <= MAX_FAILURE_LINES:
            self._console.print(Text(f"failed: {progress.failure}", style="yellow"))
        if len(self._failed) == MAX_FAILURE_LINES:
            self._console.print(
                Text("further failures are not printed; each is a row of the failures table", style="yellow")
            )


def time_left_s(progress: Progress, work_start_s: float) -> float | None:
    """Seconds until the end: work that waits, at the rate of the work done since `work_start_s`.

    A waiting source is assumed to cost the mean of the step's finished ones. Returns None while a step with
    waiting sources has not finished one, because its cost is unknown then.
    """
    if progress.done >= progress.total:
        return 0.0
    elapsed = progress.elapsed_s - work_start_s
    done = sum(step.seconds for step in progress.steps)
    waiting = 0.0
    for step in progress.steps:
        unfinished = step.queued + step.running / 2  # a running source is half done on average
        if unfinished and not step.done:
            return None
        waiting += unfinished * step.seconds / max(1, step.done)
    return waiting * elapsed / done if done > 0 and elapsed > 0 else None


def live_view(progress: Progress, left_s: float | None) -> Group:
    """The display on a terminal."""
    bar = Table.grid(padding=(0, 2), expand=False)
    counts = f"{progress.done:,} of {progress.total:,} sources"
    times = f"{format_duration(progress.elapsed_s)}" + (
        f", about {format_duration(left_s)} left" if left_s is not None else ", time left not known yet"
    )
    bar.add_row(
        Text("ingest", style="bold"),
        ProgressBar(total=1.0, completed=share_done(progress), width=32, complete_style="cyan"),
        counts,
        times,
    )
    speed = progress.video_seconds / max(progress.elapsed_s, 1e-9)
    totals = Text(f"{format_duration(progress.video_seconds)} of video at {speed:.2f} video s/s   ")
    totals.append(f"{progress.clips:,} clips", style="green").append("   ").append_text(
        failures_text(progress.failures)
    )
    return Group(
        bar,
        totals,
        Text(),
        step_table(progress.steps),
        Text(f"latest: {progress.latest}", style="dim", no_wrap=True, overflow="ellipsis"),
    )


def share_done(progress: Progress) -> float:
    """Share 0..1 of all steps of all sources that ended. It also grows during a single long source."""
    ended = sum(step.done + step.failed for step in progress.steps)
    left = sum(step.running + step.queued for step in progress.steps)
    return ended / (ended + left) if ended + left else progress.done / max(1, progress.total)


def step_table(steps: Sequence[StepProgress]) -> Table:
    """One row per step: counts, speed of one worker relative to real time, and share of all working time."""
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


def log_line(progress: Progress, left_s: float | None) -> str:
    """The display as one line, for a log."""
    running = ", ".join(f"{step.name} {step.running}" for step in progress.steps if step.running)
    parts = [
        f"ingest {progress.done}/{progress.total} sources, {share_done(progress):.0%} of the steps",
        f"{progress.clips} clips",
        failures_text(progress.failures).plain,
        f"{progress.video_seconds / max(progress.elapsed_s, 1e-9):.2f} video s/s",
        format_duration(progress.elapsed_s) + (f", about {format_duration(left_s)} left" if left_s else ""),
    ]
    return "; ".join(parts) + (f"; running: {running}" if running else "")


def failures_text(failures: dict[str, int]) -> Text:
    """Number of failures, with the most frequent kinds first."""
    if not failures:
        return Text("none failed", style="dim")
    kinds = sorted(failures.items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{kind} {count:,}" for kind, count in kinds[:4]) + (", ..." if len(kinds) > 4 else "")
    return Text(f"{sum(failures.values()):,} failed ({listed})", style="yellow")


def speed_text(step: StepProgress) -> str:
    """Seconds of video per working second of one worker."""
    return f"{step.video_seconds / step.seconds:,.1f}" if step.video_seconds and step.seconds else "-"


def format_duration(seconds: float) -> str:
    """Seconds as M:SS or H:MM:SS, for example 0:07, 12:40, 3:05:00."""
    minutes, seconds_left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds_left:02d}" if hours else f"{minutes}:{seconds_left:02d}"


def show_summary(summary: IngestSummary, sources: Sequence[str], corpus: str) -> None:
    """Print what an ingest did: totals, cost by step, failures by kind, and the commands to run next."""
    print_ = console.console.print
    print_(headline(summary), style="bold")
    if summary.steps and any(step.seconds for step in summary.steps.values()):
        columns = ("step", "sources", "reused", "failed", "seconds", "s per video-second", "share %")
        console.table("cost by step", columns, step_rows(summary))
    if summary.lost:
        console.table(
            "lost by kind of failure", ("kind", "sources", "clips", "video hours"), lost_rows(summary)
        )
    for clip, message in list(summary.failed_clips.items())[:MAX_FAILURE_LINES]:
        print_(f"clip {clip}: {message}", style="yellow")
    if len(summary.failed_clips) > MAX_FAILURE_LINES:
        print_("further failed clips are not printed; each is a row of the failures table", style="yellow")
    if summary.passed_over:
        reasons = Counter(summary.passed_over.values()).most_common()
        print_("files skipped: " + ", ".join(f"{count:,} × {why}" for why, count in reasons))
    if summary.duplicates:
        duplicate, original = sorted(summary.duplicates.items())[0]
        print_(
            f"{len(summary.duplicates):,} duplicates of other sources, measured once "
            f"(for example {duplicate} = {original})"
        )
    for hint in next_steps(summary, sources, corpus):
        print_(hint)


def headline(summary: IngestSummary) -> str:
    """The run in one line."""
    speed = summary.video_seconds / max(summary.seconds, 1e-9)
    parts = [f"ingested {summary.sources:,} sources ({format_duration(summary.video_seconds)} of video)"]
    parts.append(f"{summary.clips:,} clips ({format_duration(summary.clip_seconds)})")
    parts.append(f"{sum(summary.failures.values()):,} failed")
    if summary.failed_clips:
        parts.append(f"{len(summary.failed_clips):,} clips failed")
    if summary.skipped_done:
        parts.append(f"{summary.skipped_done:,} were done before")
    times = f"{format_duration(summary.seconds)}" + (
        f", the first source after {format_duration(summary.start_seconds)}" if summary.start_seconds else ""
    )
    return ", ".join(parts) + f"; {times}" + (f", {speed:.2f} video s/s" if summary.sources else "")


def step_rows(summary: IngestSummary) -> list[tuple[Any, ...]]:
    """One row per step: sources, reused results, failures, seconds, seconds per video second, share."""
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
    work = sum(step.seconds for step in summary.steps.values())
    return [
        *rows,
        ("all", None, None, None, round(work, 1), round(work / video, 4) if video else None, 100),
    ]


def lost_rows(summary: IngestSummary) -> list[tuple[Any, ...]]:
    """One row per kind of failure, the one that lost most video first."""
    kinds = sorted(summary.lost.items(), key=lambda item: (-item[1].video_seconds, -item[1].sources, item[0]))
    return [(kind, lost.sources, lost.clips, round(lost.video_seconds / 3600, 4)) for kind, lost in kinds]


def next_steps(summary: IngestSummary, sources: Sequence[str], corpus: str) -> list[str]:
    """Commands to run next, ready to paste into a shell."""
    # a shell's glob may name thousands
    named = shlex.join(sources) if sum(map(len, sources)) < MAX_COMMAND_LENGTH else "..."
    again = f"uniavgen ingest {named} {shlex.join(['--corpus', corpus])}"
    hints = []
    if summary.failures:
        hints.append(f"retry the failed sources: {again} --retry")
    elif summary.failed_clips:
        hints.append(f"retry the failed clips: {again} --retry")
    elif summary.skipped_failed:
        hints.append(
            f"{summary.skipped_failed:,} sources failed before and were skipped; retry them: {again} --retry"
        )
    if summary.skipped_failed_clips:
        count = f"{summary.skipped_failed_clips:,}"
        hints.append(f"{count} clips failed before and were skipped; retry them: {again} --retry")
    if summary.clips or summary.skipped_done:
        where = shlex.join(["--corpus", corpus])
        hints.append(f"next: uniavgen curate {where} && uniavgen report {where}")
    return hints
