"""Ingest display: counts, time left, log lines, failures, and the commands to run next."""

import io
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType
from rich.text import Text

from uniavgen.ingest.engine.forecast import pace
from uniavgen.ingest.engine.progress import FailureTotals, IngestSummary, Progress, StepProgress, StepSummary
from uniavgen.orchestration.output import ingest_display
from uniavgen.orchestration.output.ingest_display import (
    IngestDisplay,
    live_view,
    log_line,
    lost_rows,
    next_steps,
    share_done,
    step_rows,
    time_left_s,
)

STEPS = (
    StepProgress("probe", done=7, running=0, queued=0, failed=1, seconds=1.0, video_seconds=70.0),
    StepProgress("faces", done=4, running=1, queued=2, failed=0, seconds=20.0, video_seconds=40.0),
    StepProgress("cut", done=3, running=1, queued=3, failed=0, seconds=6.0, video_seconds=30.0),
)


def progress(**changes: Any) -> Progress:
    usual: dict[str, Any] = {
        "done": 4,
        "total": 8,
        "clips": 12,
        "video_seconds": 30.0,
        "failures": {"not-a-video": 1},
    }
    usual |= {"elapsed_s": 25.0, "steps": STEPS, "latest": "/v/a.mp4"}
    return Progress(**usual | changes)


def text_of(renderable: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def test_live_view_shows_counts_and_speed_of_every_step() -> None:
    shown = text_of(live_view(progress(), 61.0))
    rows = {row.split()[0]: row.split()[1:6] for row in shown.splitlines() if row.split()}
    assert rows["probe"] == ["7", "·", "·", "1", "70.0"]
    assert rows["faces"] == ["4", "1", "2", "·", "2.0"]
    assert rows["cut"] == ["3", "1", "3", "·", "5.0"]
    for text in (
        "4 of 8 sources",
        "about 1:01 left",
        "12 clips",
        "1 failed (not-a-video 1)",
        "1.20 video s/s",
        "/v/a.mp4",
    ):
        assert text in shown


def test_share_done_grows_during_one_long_source() -> None:
    steps = (StepProgress("probe", done=1), StepProgress("faces", running=1), StepProgress("cut", queued=2))
    assert share_done(progress(done=0, total=1, steps=steps)) == 0.25
    assert share_done(progress(done=3, total=4, steps=())) == 0.75
    assert share_done(progress(done=0, total=0, steps=())) == 0.0


def test_history_of_a_long_ingest_is_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_display, "MAX_HISTORY", 50)
    display = IngestDisplay(Console(file=io.StringIO()))
    for second in range(5000):
        display.update(
            progress(elapsed_s=float(second), steps=(StepProgress("faces", seconds=2.0 * second),))
        )
    assert len(display.history) <= 50
    assert (display.history[0][0], display.history[-1][0]) == (0.0, 4999.0)
    assert pace(display.history) == pytest.approx((0.0, 2.0), abs=1e-6)


def test_live_view_fits_a_narrow_terminal() -> None:
    shown = text_of(live_view(progress(latest="/a/very/long/path" * 20), 5.0), width=80)
    assert all(len(row) <= 80 for row in shown.splitlines())
    assert len(shown.splitlines()) == len(text_of(live_view(progress(), 5.0), width=80).splitlines())


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.floats(0.01, 100)), min_size=1, max_size=6),
    st.floats(0.5, 16),
    st.floats(0, 60),
)
def test_time_left_is_waiting_work_over_rate(
    rows: list[tuple[int, int, float]], workers: float, start_s: float
) -> None:
    """With steps of constant cost and `workers` always busy, the time left is waiting work / workers."""
    steps = tuple(
        StepProgress(str(i), done=d, queued=q, seconds=d * cost) for i, (d, q, cost) in enumerate(rows)
    )
    spent = sum(step.seconds for step in steps)
    report = progress(done=1, total=100, steps=steps, elapsed_s=start_s + spent / workers)
    waiting = sum(queued * cost for _, queued, cost in rows)
    assert time_left_s(report, start_s) == pytest.approx(waiting / workers, rel=1e-6, abs=1e-6)


def test_time_left_is_unknown_before_every_step_finished_once_and_zero_at_the_end() -> None:
    assert time_left_s(progress(steps=(*STEPS, StepProgress("new", queued=8))), 0.0) is None
    assert time_left_s(progress(steps=()), 0.0) is None
    assert time_left_s(progress(done=8), 0.0) == 0.0


def test_log_gets_one_line_every_ten_seconds_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(ingest_display.time, "monotonic", lambda: now)
    written = io.StringIO()
    with IngestDisplay(Console(file=written, width=400)) as display:
        for _ in range(60):  # half a minute
            display.update(progress(elapsed_s=now))
            now += 0.5
    lines = written.getvalue().splitlines()
    assert len(lines) == 3 + 1
    assert all("ingest 4/8 sources" in line and "\x1b" not in line for line in lines)
    assert "running: faces 1, cut 1" in log_line(progress(), None)


def test_each_failure_is_printed_once_up_to_a_limit() -> None:
    written = io.StringIO()
    with IngestDisplay(Console(file=written, width=200)) as display:
        for number in range(100):
            for _ in range(2):
                display.update(
                    progress(latest=f"/v/{number}.mp4", failure=f"no video here (/v/{number}.mp4)")
                )
    lines = [line for line in written.getvalue().splitlines() if line.startswith("failed: ")]
    assert len(lines) == len(set(lines)) == ingest_display.MAX_FAILURE_LINES
    assert "failures table" in written.getvalue()


def test_terminal_shows_the_live_view_and_keeps_one_line() -> None:
    written = io.StringIO()
    with IngestDisplay(Console(file=written, width=300, height=40, force_terminal=True)) as display:
        display.update(progress())
        display.update(progress(done=8, clips=99))
    assert "share of work" in written.getvalue()
    assert (
        "ingest 8/8 sources, 68% of the steps; 99 clips"
        in Text.from_ansi(written.getvalue().splitlines()[-1]).plain
    )


def test_cost_table_adds_up_and_the_costliest_failure_is_first() -> None:
    steps = {"probe": StepSummary(4, 1, 1, 1.0, 40.0), "faces": StepSummary(4, 0, 0, 9.0, 40.0)}
    lost = {"no-video": FailureTotals(3, 0, 0.0), "timeout": FailureTotals(1, 5, 7200.0)}
    summary = IngestSummary(sources=4, video_seconds=40.0, seconds=8.0, steps=steps, lost=lost)
    assert step_rows(summary) == [
        ("probe", 4, 1, 1, 1.0, 0.025, 10),
        ("faces", 4, 0, 0, 9.0, 0.225, 90),
        ("all", None, None, None, 10.0, 0.25, 100),
    ]
    assert lost_rows(summary) == [("timeout", 1, 5, 2.0), ("no-video", 3, 0, 0.0)]


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3))
def test_next_command_can_be_pasted_into_a_shell(sources: list[str]) -> None:
    hints = next_steps(IngestSummary(failures={"timeout": 1}, clips=3), sources, "my corpus")
    typed = shlex.split(hints[0].partition(": ")[2])
    assert typed == ["uniavgen", "ingest", *sources, "--corpus", "my corpus", "--retry"]
    assert "uniavgen curate --corpus 'my corpus' && uniavgen report" in hints[1]
    assert next_steps(IngestSummary(), sources, "c") == []


def test_failed_clips_are_named_and_can_be_retried() -> None:
    summary = IngestSummary(sources=1, clips=2, failed_clips={"abc": "its sound is not the analysed one"})
    assert "1 clips failed" in ingest_display.headline(summary)
    assert "failed clips" in next_steps(summary, ["a.mp4"], "c")[0]
    assert "--retry" in next_steps(IngestSummary(skipped_done=1, skipped_failed_clips=3), ["a.mp4"], "c")[0]
