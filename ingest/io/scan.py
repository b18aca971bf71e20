"""Read a whole file once: lengths, jumps of the clock, frame sizes, channels. Runs in the probe server.

Audio is decoded. Of the video only some keyframes are. This takes about one percent of the time of ingest.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from uniavgen.ingest.io.channels import ChannelPower
from uniavgen.ingest.io.packet_clock import SampleClock, StreamClock, is_uneven, repair_clock
from uniavgen.ingest.records import SEEK_MARGIN_S
from uniavgen.shards.errors import UserError

KEYFRAME_EVERY_S = 1.0
"""Time between two keyframes whose size is checked. Heuristic: adaptive senders change it for longer."""

MAX_FORMS = 1000
"""Largest number of different frame sizes and formats that are recorded."""

MAX_KEYFRAMES = 20_000
"""Keyframes that are remembered; a file in which each frame is one has as many in ten minutes."""

SEEK_SHARES = (0.0, 0.4, 0.95)
"""Where seeking is tried, as shares of the length. Heuristic."""

EARLY_S = 0.1
"""A change of the audio format before this time is the decoder's own start."""

UNREAD_SHARE = 0.05
"""Share of a file that may follow the place where it cannot be read further. Heuristic."""

LENGTH_TOLERANCE_S = 0.5
"""Where the container's length is this close to that of the streams, it is kept."""


def scan(container: Any, video: int, audio: int) -> dict[str, Any]:
    """Fields of a `Probe` that need the whole file, and `sounding_s`, `largest` and `keyframes`.

    `audio` is -1 where there is none. Raises UserError (truncated) for a file that is read in part only.
    """
    return _ScanPass(container, video, audio).facts(container)


class _ScanPass:
    """One pass over the packets of a container that was just opened."""

    def __init__(self, container: Any, video: int, audio: int) -> None:
        self.video, self.audio = video, audio
        self.clocks = {index: StreamClock(index == video) for index in (video, audio) if index >= 0}
        self.file_end_s = 0.0
        self.sizes: list[tuple[int, int]] = []
        self._forms: set[tuple[Any, ...]] = set()
        self.formats: list[tuple[str, int]] = []
        self.channels = ChannelPower()
        self._samples = SampleClock()
        self.keyframes: dict[float, int] = {}
        """Hash of each keyframe by its time."""
        self.keyframe_gap_s = 0.0
        self._keyframe_s: float | None = None
        self._checked_s = -KEYFRAME_EVERY_S
        container.streams[video].codec_context.skip_frame = "NONKEY"
        end = StreamEnd()
        for timed in timed_packets(container, audio, end=end):
            self._add(timed)
        check_read(
            end,
            container.size,
            max((each.ends[-1] for each in self.clocks.values() if each.ends), default=0.0),
        )
        for frame in _decoded(container.streams[video], None):
            self._add_size(frame)

    def _add(self, timed: TimedPacket) -> None:
        packet, shown = timed.packet, timed.shown_s
        stream = packet.stream
        if shown is not None and stream.type in ("video", "audio", "subtitle"):
            self.file_end_s = max(self.file_end_s, shown + timed.duration_s)
        if stream.index not in self.clocks:
            return
        timed.add_to(self.clocks[stream.index])
        if stream.index == self.audio:
            self._samples.add(timed.heard_s, timed.decoded_s)
        for frame in timed.frames:
            self._add_audio(frame)
        if stream.index == self.video and packet.is_keyframe:
            self._add_keyframe(packet, shown)

    def _add_keyframe(self, packet: Any, shown: float | None) -> None:
        if shown is not None:
            if self._keyframe_s is not None:
                self.keyframe_gap_s = max(self.keyframe_gap_s, shown - self._keyframe_s)
            self._keyframe_s = shown
            if len(self.keyframes) < MAX_KEYFRAMES:
                self.keyframes[shown] = keyframe_hash(packet)
        if self._is_due(shown):
            for frame in _decoded(packet.stream, packet):
                self._add_size(frame)

    def _add_size(self, frame: Any) -> None:
        aspect = getattr(frame, "sample_aspect_ratio", None) or 1
        size = round(frame.width * float(aspect)), frame.height
        form = *size, frame.format.name, int(frame.color_range)
        if form not in self._forms and len(self._forms) < MAX_FORMS:
            self._forms.add(form)
            self.sizes.append(size)

    def _is_due(self, shown: float | None) -> bool:
        if shown is None or abs(shown - self._checked_s) < KEYFRAME_EVERY_S:
            return False
        self._checked_s = shown
        return True

    def _add_audio(self, frame: Any) -> None:
        form = (frame.layout.name, frame.sample_rate)
        if not self.formats or self.formats[-1] != form:
            if self.formats and self.channels.seconds < EARLY_S:
                self.formats.pop()
            self.formats.append(form)
        self.channels.add(frame)

    def facts(self, container: Any) -> dict[str, Any]:
        clock = repair_clock(self.clocks)
        restarts = is_discontinuous(container)
        starts = [start for index in self.clocks if (start := _start(container.streams[index])) is not None]
        agree = not starts or max(starts) - min(starts) < 0.001
        repairs = [
            # at any jump ffmpeg shifts the clock of a format in which timestamps may start anew
            *(["timestamps"] if clock.needed or (restarts and clock.jumps) else []),
            *(["audio-format"] if len(set(self.formats)) > 1 else []),
        ]
        if not repairs and is_uneven(self._samples.lags):
            repairs = ["audio-gaps"]
        zero_s = min(starts, default=0.0) if restarts else (container.start_time or 0) / 1e6
        ends = [each.ends[-1] for each in self.clocks.values() if each.ends]
        length_s = clock.duration_s if clock.needed or clock.jumps else max(ends, default=zero_s) - zero_s
        declared_s = (container.duration or 0) / 1e6
        if abs(length_s - declared_s) > LENGTH_TOLERANCE_S and length_s > 0:
            duration_s = length_s
        else:
            duration_s = declared_s
        mono, correlation = self.channels.mono()
        return {
            "duration_s": max(0.0, duration_s),
            "declared_s": 0.0 if restarts else self._declared_s(container, zero_s),
            "start_s": min(starts) if restarts and not agree and not repairs else None,
            "clock_zero_s": zero_s,
            "audio_stream": self.audio,
            "mono": mono,
            "channel_correlation": correlation,
            "frame_sizes": max(1, len(self._forms)),
            "largest": max(self.sizes, key=lambda size: size[0] * size[1], default=None),
            "repairs": repairs,
            "sounding_s": self.channels.sounding_s,
            "keyframes": self.keyframes,
            "keyframe_gap_s": self.keyframe_gap_s,
        }

    def _declared_s(self, container: Any, zero_s: float) -> float:
        """Length that the file declares for the chosen streams; 0 if it declares none.

        Where only the whole file has a length, it counts unless other streams explain it.
        """
        own = [
            declared for index in self.clocks if (declared := _stream_length(container.streams[index])) > 0
        ]
        if own:
            return max(own)
        whole: float = (container.duration or 0) / 1e6
        ends = [each.ends[-1] for each in self.clocks.values() if each.ends]
        explained = self.file_end_s - zero_s > whole - LENGTH_TOLERANCE_S
        by_others = explained and max(ends, default=0.0) < self.file_end_s - LENGTH_TOLERANCE_S
        return 0.0 if by_others else whole


def seeks_right(opened: Callable[[], Any], facts: dict[str, Any], video: int) -> bool:
    """Whether a decoder that seeks finds what one finds that reads from the beginning.

    Tries a few places. A seek must give a keyframe of known time and content, and audio, at most
    `SEEK_MARGIN_S` after its target.
    """
    span_s = facts["duration_s"] - SEEK_MARGIN_S
    if span_s <= 0.0 or len(facts["keyframes"]) >= MAX_KEYFRAMES:
        return True
    for share in SEEK_SHARES:
        with opened() as container:
            if is_discontinuous(container) and facts["keyframe_gap_s"] > SEEK_MARGIN_S - 1.0:
                return False  # a seek does not look for keyframes
            latest_s = (container.start_time or 0) / 1e6 + share * span_s + SEEK_MARGIN_S
            container.seek(int((latest_s - SEEK_MARGIN_S) * 1e6))
            if not _arrives(container, facts["keyframes"], video, facts["audio_stream"], latest_s):
                return False
    return True


def _arrives(container: Any, keyframes: dict[float, int], video: int, audio: int, latest_s: float) -> bool:
    """Whether the next packets hold a known keyframe, and audio, before `latest_s`."""
    wanted = {index for index in (video, audio) if index >= 0}
    for number, packet in enumerate(packets(container, *wanted)):
        pts_s, dts_s, _ = _times(packet)
        shown = pts_s if pts_s is not None else dts_s
        index = packet.stream.index
        if index not in wanted or shown is None or (index == video and not packet.is_keyframe):
            continue
        if shown > latest_s or (index == video and keyframes.get(shown) != keyframe_hash(packet)):
            return False
        wanted.remove(index)
        if not wanted or number > MAX_KEYFRAMES:
            return True
    # at the end of the file a stream may have no packet left
    return video not in wanted


@dataclass
class StreamEnd:
    """Where and why reading ended: byte position of the last packet, and the error; "" at the end of the
    file.
    """

    position: int = 0
    error: str = ""


def check_read(end: StreamEnd, size: int, seconds: float) -> None:
    """Raise UserError (truncated) if an error ended reading with much of the file left.

    So ends an Ogg file that is a chain of several videos, and one that is damaged beyond what its container
    can skip. Decoders stop there too, and nothing else tells.
    """
    unread = 1 - end.position / size if size and end.position else 0.0
    if end.error and unread > UNREAD_SHARE:
        raise UserError(
            f"it cannot be read after {seconds:.1f} s, {unread:.0%} of the file follow: {end.error}",
            hint="split it into its parts, or convert it",
            kind="truncated",
        )


def packets(container: Any, *indices: int, end: StreamEnd | None = None) -> Iterator[Any]:
    """Packets of the streams in file order, up to the first one that cannot be read (`end` tells)."""
    import av

    streams = [container.streams[index] for index in indices]
    end = end or StreamEnd()
    try:
        for packet in container.demux(*streams):
            if packet.size:
                end.position = max(end.position, packet.pos or 0)
                yield packet
    except EOFError:
        return
    except av.error.FFmpegError as error:
        end.error = error.strerror or type(error).__name__


@dataclass(frozen=True)
class TimedPacket:
    """A packet with its times in seconds, and its decoded frames if it is of the audio stream."""

    packet: Any
    pts_s: float | None
    dts_s: float | None
    duration_s: float
    frames: list[Any]

    @property
    def shown_s(self) -> float | None:
        return self.pts_s if self.pts_s is not None else self.dts_s

    @property
    def decoded_s(self) -> float:
        """Length of the decoded frames."""
        return float(sum(frame.samples / (frame.sample_rate or 1) for frame in self.frames))

    @property
    def heard_s(self) -> float | None:
        """When the first decoded sample is heard."""
        time_s = self.shown_s if self.frames else None
        if time_s is not None and self.frames[0].pts is not None:
            own_s = float(self.frames[0].pts * self.frames[0].time_base)
            # the decoder may have left out the beginning; a delayed frame has the time of another packet
            whole_s = (self.packet.duration or 0) * float(self.packet.time_base)
            return own_s if 0.0 <= own_s - time_s < max(self.duration_s, whole_s) else time_s
        return time_s

    def add_to(self, clock: StreamClock) -> None:
        clock.add(self.pts_s, self.dts_s, self.duration_s, self.packet.pos)


def timed_packets(
    container: Any, audio: int, *indices: int, end: StreamEnd | None = None
) -> Iterator[TimedPacket]:
    """Packets as `packets` gives them. Those of stream `audio` are decoded.

    A transport stream has one timestamp for several frames of audio. The demuxer gives the others one by the
    sample rate of the stream's start, and no position: these times are left out.
    """
    has_positions = False
    for packet in packets(container, *indices, end=end):
        pts_s, dts_s, duration_s = _times(packet)
        frames: list[Any] = []
        if packet.stream.index == audio:
            frames = list(_decoded(packet.stream, packet))
            decoded_s = sum(frame.samples / (frame.sample_rate or 1) for frame in frames)
            duration_s = float(decoded_s) or duration_s
            has_positions = has_positions or packet.pos is not None
            if has_positions and packet.pos is None:
                pts_s = dts_s = None
        yield TimedPacket(packet, pts_s, dts_s, duration_s, frames)


def _times(packet: Any) -> tuple[float | None, float | None, float]:
    base = float(packet.time_base)
    duration_s = (packet.duration or 0) * base
    if not duration_s and packet.stream.type == "video" and packet.stream.average_rate:
        duration_s = float(1 / packet.stream.average_rate)
    pts_s, dts_s = (None if time is None else time * base for time in (packet.pts, packet.dts))
    return pts_s, dts_s, duration_s


def is_discontinuous(container: Any) -> bool:
    """Whether timestamps of this format may start anew (libavformat's AVFMT_TS_DISCONT)."""
    return bool(container.format.flags & 0x0200)


def keyframe_hash(packet: Any) -> int:
    """A number that tells a file's keyframes apart."""
    return zlib.crc32(bytes(packet))


def _decoded(stream: Any, packet: Any) -> Iterator[Any]:
    import av

    with suppress(av.error.FFmpegError, EOFError):
        yield from stream.codec_context.decode(packet)


def _start(stream: Any) -> float | None:
    """Timestamp of a stream's first frame; the demuxer leaves out what decoders skip."""
    return None if stream.start_time is None else float(stream.start_time * stream.time_base)


def _stream_length(stream: Any) -> float:
    """Seconds that a file declares for one stream, 0 if none."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) if tag else 0.0
