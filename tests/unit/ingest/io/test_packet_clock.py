"""Timestamps that jump: parts of a file end up on one clock, whatever their own timestamps are."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from uniavgen.ingest.io.packet_clock import (
    MAX_JUMPS,
    SampleClock,
    StreamClock,
    audio_seams,
    is_uneven,
    repair_clock,
)
from uniavgen.shards.errors import UserError

VIDEO, AUDIO = 0, 1
FRAME_S, BLOCK_S = 0.04, 0.02


def repaired_times(parts: list[tuple[float, float, float]]) -> tuple[list[tuple[float, float]], float]:
    """(true time, time on the repaired clock) of each packet, and the length.

    A part is (timestamp of its start, seconds of video, seconds that audio starts late).
    """
    clocks = {VIDEO: StreamClock(reorders=True), AUDIO: StreamClock(reorders=False)}
    packets: list[tuple[int, float, float]] = []
    true_s, position = 0.0, 0
    for start_s, seconds, late_s in parts:
        steps = [(index * FRAME_S, VIDEO) for index in range(round(seconds / FRAME_S))]
        steps += [(late_s + i * BLOCK_S, AUDIO) for i in range(round((seconds - late_s) / BLOCK_S))]
        for time_s, index in sorted(steps):
            duration_s = FRAME_S if index == VIDEO else BLOCK_S
            position += 188
            clocks[index].add(start_s + time_s, start_s + time_s, duration_s, position)
            packets.append((index, true_s + time_s, start_s + time_s))
        true_s += seconds
    repair = repair_clock(clocks)
    counts = {VIDEO: 0, AUDIO: 0}
    times = []
    for index, true_time_s, file_s in packets:
        offset = [seconds for first, seconds in repair.offsets[index] if first <= counts[index]][-1]
        counts[index] += 1
        times.append((true_time_s, file_s + offset))
    return times, repair.duration_s


starts = st.floats(0.0, 90_000.0)
part_lengths = st.integers(50, 150).map(lambda frames: frames * FRAME_S)
delays = st.sampled_from([0.0, 0.02, 0.4, 1.5])


@given(st.lists(st.tuples(starts, part_lengths, delays), min_size=1, max_size=5))
def test_parts_with_any_timestamps_are_joined_in_file_order(parts: list[tuple[float, float, float]]) -> None:
    """Timestamps that go on up to 10 s later are a pause, which stays; they are left out here."""
    ends = [start_s + seconds for start_s, seconds, _ in parts]
    steps = [part[0] - end for part, end in zip(parts[1:], ends, strict=False)]
    assume(not any(-0.15 < step < 13.0 for step in steps))
    times, length_s = repaired_times(parts)
    assert max(abs(found - true_s) for true_s, found in times) < 1e-3
    assert length_s == pytest.approx(sum(seconds for _, seconds, _ in parts), abs=1e-3)


def test_pause_of_one_stream_stays() -> None:
    clocks = {VIDEO: StreamClock(True), AUDIO: StreamClock(False)}
    for index in range(2000):
        clocks[AUDIO].add(index * BLOCK_S, index * BLOCK_S, BLOCK_S, index)
    for index in (*range(100), *range(900, 1000)):  # a still picture is sent once
        clocks[VIDEO].add(index * FRAME_S, index * FRAME_S, FRAME_S, index)
    assert not repair_clock(clocks).needed


def test_single_wrong_timestamp_is_no_jump() -> None:
    clock = StreamClock(False)
    for index in range(500):
        clock.add(7200.0 if index == 250 else index * BLOCK_S, None, BLOCK_S)
    assert not clock.jumps
    assert clock.ends == [pytest.approx(10.0)]


def test_endless_jumps_are_an_error() -> None:
    clock = StreamClock(False)

    def add_jumps() -> None:
        for index in range(20 * MAX_JUMPS):
            clock.add(1000.0 * (index // 10 % 2), None, BLOCK_S)

    with pytest.raises(UserError, match="timestamps jump more than") as caught:
        add_jumps()
    assert caught.value.kind == "decode-failed"


STEPS_S = st.sampled_from([-0.3, -0.15, -0.06, -0.021, 0.0, 0.021, 0.06, 0.15, 0.3])


@given(
    parts=st.lists(st.tuples(STEPS_S, st.integers(20, 60)), min_size=1, max_size=6),
    jitter_s=st.sampled_from([0.0, 0.001, 0.004]),
    untimed=st.integers(0, 3),
    start_s=st.sampled_from([-0.02, 0.0, 5.0]),
)
def test_gaps_and_overlaps_of_audio_are_found_where_they_are(
    parts: list[tuple[float, int]], jitter_s: float, untimed: int, start_s: float
) -> None:
    """Blocks of 20 ms; before each part audio is missing (> 0) or doubled (< 0)."""
    clock, time_s, number = SampleClock(), start_s, 0
    seams = set()
    for index, (step_s, blocks) in enumerate(parts):
        if index and step_s:
            seams.add(number)
            time_s += step_s
        for _ in range(blocks):
            shown = time_s + jitter_s * (-1) ** number
            clock.add(shown if number >= untimed else None, BLOCK_S)
            time_s, number = time_s + BLOCK_S, number + 1
    assert audio_seams(clock.lags) == seams
    small = [abs(step_s) for step_s, _ in parts[1:] if 0 < abs(step_s) < 0.1]
    assert is_uneven(clock.lags) == bool(small)


def test_one_wrong_timestamp_is_no_seam() -> None:
    clock = SampleClock()
    for number in range(50):
        clock.add(number * BLOCK_S + (0.06 if number == 20 else 0.0), BLOCK_S)
    assert audio_seams(clock.lags) == set()
    assert is_uneven(clock.lags)
