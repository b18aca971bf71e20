"""Find jumps of a file's timestamps, and compute one continuous clock for all its streams.

Audio has a second clock, the count of its samples. A decoder that starts at the beginning counts, and looks
at timestamps only where both are `GAP_S` apart; a cut goes by the timestamp where its seek arrives.

Timestamps of joined or paused recordings start anew or jump ahead in the middle. A decoder that starts at the
beginning corrects this on its own. A seek goes by the timestamps in the file, so it finds another place.
On the clock that is computed here, parts follow one another without a gap, and streams keep their relation
within each part.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from uniavgen.shards.errors import UserError

BACKWARD_S = 0.1
"""A packet that starts this much before the end of the last one is on another clock. ffmpeg's value."""

FORWARD_S = 10.0
"""A packet that starts this much after the end of the last one is on another clock, if every stream jumps.
ffmpeg's value."""

SAME_JUMP_S = 2.0
"""Jumps of two streams by amounts that differ by less than this are one jump of the file. Heuristic."""

OVERLAP_S = 1.0
"""One stream alone that goes back by less than this overlaps itself: its timestamps are right. Heuristic."""

MAX_JUMPS = 1000
"""Most jumps of one stream; a hostile file may have one at every packet."""

OUTLIER_PACKETS = 5
"""A stream that is back on its old clock after at most this many packets has not jumped. Heuristic."""


GAP_S = 0.1
"""Audio that is this much late or early is padded or cut by a decoder (ffmpeg's aresample=async=1)."""

UNEVEN_S = 0.01
"""Audio whose count of samples is this much beside its timestamps is on two clocks. Half of the lag that the
proof of a clip allows."""

LASTING_PACKETS = 8
"""Packets over which a difference of both clocks must last to be a gap or an overlap, and not one wrong
timestamp. Heuristic."""


@dataclass
class Jump:
    """A jump before packet number `packet` of a stream.

    `before_s` is the end of the part before it, `after_s` the start of the part after it.
    """

    packet: int
    before_s: float
    after_s: float
    positions: tuple[int, int] = (0, 0)
    """Byte positions of the packets before and after it; equal where they are unknown."""

    def is_with(self, other: Jump) -> bool:
        """Whether two streams may jump at the same place of the file."""
        return self.positions[0] < other.positions[1] and other.positions[0] < self.positions[1]

    def resembles(self, other: Jump) -> bool:
        """Whether two streams jump between about the same times."""
        shifts = other.before_s - self.before_s, other.after_s - self.after_s
        return max(map(abs, shifts)) < SAME_JUMP_S


class StreamClock:
    """The parts of one stream between jumps, on the file's own clock. Packets are added one by one."""

    def __init__(self, reorders: bool) -> None:
        """`reorders`: packets are stored in another order than shown (video), so pts alone shows no jump."""
        self.reorders = reorders
        self.count = 0
        self.jumps: list[Jump] = []
        self.starts: list[float] = []
        self.ends: list[float] = []
        """Presentation start and end of each part."""
        self._next_s: float | None = None
        self._position = 0
        self._before_jump: tuple[int, float] | None = None

    def add(
        self, pts_s: float | None, dts_s: float | None, duration_s: float, position: int | None = None
    ) -> None:
        """Add the next packet. One without any timestamp continues the last one.

        Raises UserError (decode-failed) after too many jumps.
        """
        number, last_position = self.count, self._position
        self.count += 1
        self._position = max(last_position, position or 0)
        shown = pts_s if pts_s is not None else dts_s
        decoded = dts_s if dts_s is not None or self.reorders else pts_s
        if shown is None:
            if self._next_s is not None:
                self._next_s += duration_s
                self.ends[-1] = max(self.ends[-1], self._next_s)
            return
        if decoded is None:
            if self.starts:
                self.ends[-1] = max(self.ends[-1], shown + duration_s)
            else:
                self._open_part(shown)
            return
        if not self.starts:
            self._open_part(shown)
        elif self._next_s is not None and self._is_apart(decoded, self._next_s):
            if self._returns(number, decoded):
                self.jumps.pop()
                self.starts.pop()
                self.ends.pop()
                self._before_jump = None
            else:
                if len(self.jumps) == MAX_JUMPS:
                    raise UserError(
                        f"timestamps jump more than {MAX_JUMPS} times", hint="remux it", kind="decode-failed"
                    )
                self._before_jump = number, self._next_s
                positions = last_position, self._position
                self.jumps.append(Jump(number, self.ends[-1], shown, positions))
                self._open_part(shown)
        self.starts[-1] = min(self.starts[-1], shown)
        self.ends[-1] = max(self.ends[-1], shown + duration_s)
        self._next_s = decoded + duration_s

    def _open_part(self, shown: float) -> None:
        self.starts.append(shown)
        self.ends.append(shown)

    @staticmethod
    def _is_apart(decoded: float, expected: float) -> bool:
        return decoded < expected - BACKWARD_S or decoded > expected + FORWARD_S

    def _returns(self, number: int, decoded: float) -> bool:
        """Whether the stream is back on the clock that it left a few packets ago."""
        if self._before_jump is None or number - self._before_jump[0] > OUTLIER_PACKETS:
            return False
        return -BACKWARD_S <= decoded - self._before_jump[1] <= 1.0


@dataclass(frozen=True)
class ClockRepair:
    """One continuous clock for the streams of a file, which starts at 0."""

    offsets: dict[int, list[tuple[int, float]]]
    """By stream index: (number of the first packet, seconds to add from there on), in order."""
    duration_s: float
    jumps: int = 0
    """Jumps of all streams, those that stay included."""

    @property
    def needed(self) -> bool:
        return any(len(steps) > 1 for steps in self.offsets.values())


def repair_clock(clocks: dict[int, StreamClock]) -> ClockRepair:
    """The clock that joins the parts of a file. The earliest packet is at 0.

    A jump that all streams make is one of the file: the new part starts where the longest stream of the old
    part ends. A jump back of one stream alone continues that stream; a jump ahead of one stream alone is a
    pause of it and stays.
    """
    live = {index: clock for index, clock in clocks.items() if clock.starts}
    if not live:
        return ClockRepair({}, 0.0)
    start_s = min(clock.starts[0] for clock in live.values())
    offsets = {index: [(0, -start_s)] for index in live}
    ends = {index: clock.ends[0] - start_s for index, clock in live.items()}
    done = dict.fromkeys(live, 0)

    def move(index: int, number: int, offset: float) -> None:
        if offset != offsets[index][-1][1]:
            offsets[index].append((live[index].jumps[number].packet, offset))
        ends[index] = live[index].ends[number + 1] + offset
        done[index] = number + 1

    def move_alone(index: int, stop: int) -> None:
        clock = live[index]
        for number in range(done[index], stop):
            goes_back = clock.jumps[number].after_s < clock.jumps[number].before_s - OVERLAP_S
            offset = ends[index] - clock.starts[number + 1] if goes_back else offsets[index][-1][1]
            move(index, number, offset)

    for group in _shared_jumps(live):
        for index, number in group.items():
            move_alone(index, number)
        offset = max(ends.values()) - min(live[index].starts[number + 1] for index, number in group.items())
        for index, number in group.items():
            move(index, number, offset)
    for index, clock in live.items():
        move_alone(index, len(clock.jumps))
    return ClockRepair(offsets, max(ends.values()), sum(len(clock.jumps) for clock in live.values()))


def _shared_jumps(clocks: dict[int, StreamClock]) -> list[dict[int, int]]:
    """Jumps that every stream makes at the same place, in order: stream index -> number of its jump."""
    groups: list[dict[int, int]] = []
    first, *others = sorted(clocks, key=lambda index: len(clocks[index].jumps))
    searched = dict.fromkeys(others, 0)
    for number, jump in enumerate(clocks[first].jumps):
        group = {first: number}
        for index in others:
            left = range(searched[index], len(clocks[index].jumps))
            here = [other for other in left if clocks[index].jumps[other].is_with(jump)]
            here = here or [other for other in left if clocks[index].jumps[other].resembles(jump)]
            if here:
                group[index] = here[0]
        if len(group) == len(clocks):
            groups.append(group)
            searched |= {index: group[index] + 1 for index in others}
    return groups


class SampleClock:
    """Timestamps of the packets of an audio stream against the count of its samples."""

    def __init__(self) -> None:
        self.lags = array("d")
        """By packet: its timestamp minus the length of all audio before it. One without a timestamp has that
        of the packet before, or of the first one with a timestamp."""
        self._counted_s = 0.0
        self._is_timed = False

    def add(self, time_s: float | None, duration_s: float) -> None:
        """Add the next packet: when its first sample is heard, and the length of its samples."""
        before = self.lags[-1] if self.lags else 0.0
        self.lags.append(before if time_s is None else time_s - self._counted_s)
        if time_s is not None and not self._is_timed:
            self.lags = array("d", [self.lags[-1]]) * len(self.lags)
            self._is_timed = True
        self._counted_s += duration_s


def is_uneven(lags: Sequence[float]) -> bool:
    """Whether a decoder that counts samples from the beginning is `UNEVEN_S` beside a timestamp anywhere."""
    counted = lags[0] if lags else 0.0
    for lag in lags:
        if abs(lag - counted) >= GAP_S:
            counted = lag
        elif abs(lag - counted) > UNEVEN_S:
            return True
    return False


def audio_seams(lags: Sequence[float]) -> set[int]:
    """Numbers of the packets before which audio is missing or doubled: from there on the two clocks differ by
    another amount than before.
    """
    seams: set[int] = set()
    counted = lags[0] if lags else 0.0
    for number, lag in enumerate(lags):
        if abs(lag - counted) > UNEVEN_S:
            lasting = median(lags[number : number + LASTING_PACKETS])
            if abs(lasting - counted) > UNEVEN_S and abs(lag - lasting) <= UNEVEN_S:
                seams.add(number)
                counted = lasting
    return seams
