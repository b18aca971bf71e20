"""The counts that the display shows, and whose content it is."""

from uniavgen.ingest.engine.progress import StepProgress
from uniavgen.ingest.engine.run_state import Board
from uniavgen.ingest.engine.step_graph import STEP_NAMES


def shown(board: Board, sources: int) -> dict[str, StepProgress]:
    return {step.name: step for step in board.steps(sources)}


def test_every_source_is_done_running_queued_or_failed_in_every_step() -> None:
    board = Board()
    board.ended("a", {"fetch": 0.5}, 0.0)
    board.ended("a", {"probe": 0.1}, 10.0)
    board.ended("b", {"fetch": 0.5}, 0.0)
    board.ended("b", {"probe": 0.2}, 0.0, failed="probe", kind="not-a-video")
    board.began("a", "diarize")
    board.refused("c")
    found = shown(board, 4)
    assert [(s.done, s.running, s.queued, s.failed) for s in (found["fetch"], found["probe"])] == [
        (2, 0, 1, 0),
        (1, 0, 1, 1),
    ]
    # b failed before and c is a copy: neither waits here
    assert (found["diarize"].running, found["diarize"].queued, found["cut"].queued) == (1, 1, 2)
    assert (found["probe"].video_seconds, round(found["probe"].seconds, 3)) == (10.0, 0.3)
    assert tuple(found) == STEP_NAMES


def test_a_step_that_nobody_asks_for_has_no_queue_once_the_source_is_past_it() -> None:
    board = Board()
    board.reused(["probe", "diarize", "transcribe", "faces", "shots"])
    found = shown(board, 2)
    assert (found["sound"].queued, found["fetch"].queued, found["decode"].queued) == (1, 1, 1)
    assert (found["shots"].queued, found["cut"].queued, found["shots"].done) == (1, 2, 0)


def test_doing_a_thing_again_costs_time_and_counts_no_source() -> None:
    board = Board()
    board.ended("a", {"sound": 1.0}, 9.0)
    board.ended("a", {"sound": 1.0}, 9.0, again=True)
    step = board.totals()["sound"]
    assert (step.done, step.seconds, step.video_seconds) == (1, 2.0, 9.0)


def test_a_shared_pass_counts_each_of_its_steps() -> None:
    board = Board()
    board.ended("a", {"decode": 1.0, "faces": 5.0, "shots": 2.0}, 30.0)
    totals = board.totals()
    assert [
        (totals[name].done, totals[name].seconds) for name in ("decode", "faces", "shots", "picture")
    ] == [
        (1, 1.0),
        (1, 5.0),
        (1, 2.0),
        (0, 0.0),
    ]


def test_the_first_to_ask_owns_a_content_and_a_moved_file_takes_over_from_where_it_was() -> None:
    board = Board({"old": "/v/before.mp4"})
    assert board.claim("new", "/v/b.mp4") == "/v/b.mp4"
    assert board.claim("new", "/v/a.mp4") == "/v/b.mp4"
    assert board.claim("new", "/v/b.mp4") == "/v/b.mp4"
    assert board.claim("old", "/v/after.mp4") == "/v/before.mp4"
    assert board.claim("old", "/v/after.mp4", instead_of="/v/before.mp4") == "/v/after.mp4"
    assert board.claim("old", "/v/third.mp4", instead_of="/v/before.mp4") == "/v/after.mp4"
