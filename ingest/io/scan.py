"""Read a whole file once: lengths, jumps of the clock, frame sizes, channels. Runs in the probe server.

Audio is decoded. Of the video only some keyframes are. This takes about one percent of the time of ingest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from uniavgen.ingest.io.packet_clock import StreamClock, repair_clock

KEYFRAME_EVERY_S = 2.0
"""Time between two keyframes whose size is checked. Heuristic: adaptive senders change it for longer."""

EARLY_S = 0.1
"""A change of the audio format before this time is the decoder's own start."""

LENGTH_TOLERANCE_S = 0.5
"""Where the container's length is this close to that of the streams, it is kept."""

SILENT_POWER = 1e-7
"""Mean power of a second below which a channel is silent (-70 dBFS)."""

ONE_SIDED = 1e-3
"""Power of the weaker channel over that of the louder one, below which only the louder one is used (-30 dB).
Heuristic."""

OPPOSITE = -0.7
"""Correlation of left and right below which a second is in opposite phase. Heuristic."""

SECONDS_IN_PHASE = 0.2
"""Share of the seconds that are in phase, and of those that are opposite, from which neither mix is right.
Heuristic."""


def scan(container: Any, video: int, audios: Sequence[int]) -> dict[str, Any]:
    """Fields of a `Probe` that need the whole file.

    `audios` are audio streams, best first; the first with sound is taken.
    """
    result = _ScanPass(container, video, audios[0] if audios else -1)
    return result.facts(container)


def silent(facts: dict[str, Any]) -> bool:
    """Whether the audio stream of a scan holds no sound."""
    return bool(facts["silent"])


class _ScanPass:
    """One pass over the packets of a container that was just opened."""

    def __init__(self, container: Any, video: int, audio: int) -> None:
        self.video, self.audio = video, audio
        self.clocks = {index: StreamClock(index == video) for index in (video, audio) if index >= 0}
        self.file_end_s = 0.0
        self.sizes: dict[tuple[int, int], int] = {}
        self.formats: list[tuple[str, int]] = []
        self.channels = ChannelPower()
        self._checked_s = -KEYFRAME_EVERY_S
        container.streams[video].codec_context.skip_frame = "NONKEY"
        for packet in packets(container):
            self._add(packet)
        for frame in _decoded(container.streams[video], None):
            self.sizes.setdefault((frame.width, frame.height), len(self.sizes))

    def _add(self, packet: Any) -> None:
        stream = packet.stream
        pts, dts, duration = packet_times(packet)
        shown = pts if pts is not None else dts
        if shown is not None and stream.type in ("video", "audio", "subtitle"):
            self.file_end_s = max(self.file_end_s, shown + duration)
        if stream.index not in self.clocks:
            return
        self.clocks[stream.index].add(pts, dts, duration)
        if stream.index == self.audio:
            for frame in _decoded(stream, packet):
                self._add_audio(frame)
        elif packet.is_keyframe and self._is_due(shown):
            for frame in _decoded(stream, packet):
                self.sizes.setdefault((frame.width, frame.height), len(self.sizes))

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
            "audio_stream": self.audio,
            "mono": mono,
            "channel_correlation": correlation,
            "frame_sizes": max(1, len(self.sizes)),
            "largest": max(self.sizes, key=lambda size: size[0] * size[1], default=None),
            "repairs": repairs,
            "silent": self.channels.is_silent(),
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


class ChannelPower:
    """Power of left and right and their product, second by second."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._rows: list[np.ndarray] = []
        self._sum, self._count = np.zeros(3), 0
        self._stereo = True

    def add(self, frame: Any) -> None:
        samples = _as_float(frame)
        self.seconds += samples.shape[1] / max(1, frame.sample_rate)
        left, right = samples[0], samples[1 if len(samples) == 2 else 0]
        self._stereo = self._stereo and len(samples) == 2
        self._sum += (left @ left, right @ right, left @ right)
        self._count += samples.shape[1]
        if self._count >= frame.sample_rate:
            self._flush()

    def _flush(self) -> None:
        if self._count:
            self._rows.append(self._sum / self._count)
        self._sum, self._count = np.zeros(3), 0

    def _powers(self) -> np.ndarray:
        self._flush()
        return np.array(self._rows).reshape(-1, 3)

    def is_silent(self) -> bool:
        powers = self._powers()
        return not len(powers) or bool(powers[:, :2].max() < SILENT_POWER)

    def mono(self) -> tuple[str, float | None]:
        """How to make one channel of two, and the correlation of left and right."""
        return choose_mono(self._powers()) if self._stereo else ("mix", None)


def choose_mono(powers: np.ndarray) -> tuple[str, float | None]:
    """`mix`, `left`, `right` or `difference`, and the correlation, from [seconds, (left, right, product)].

    The mix of a channel with silence is 6 dB low, and that of a channel with its inverse is silent.
    """
    loud = powers[powers[:, :2].max(axis=1) >= SILENT_POWER] if len(powers) else powers
    if not len(loud):
        return "mix", None
    left, right, product = (float(value) for value in loud.sum(axis=0))
    if min(left, right) < ONE_SIDED * max(left, right):
        return ("left" if left > right else "right"), None
    correlation = float(np.clip(product / np.sqrt(left * right), -1.0, 1.0))
    each = loud[:, 2] / np.sqrt(np.maximum(loud[:, 0] * loud[:, 1], 1e-20))
    both = (loud[:, :2].min(axis=1) >= ONE_SIDED * loud[:, :2].max(axis=1)).astype(bool)
    opposite = float(((each < OPPOSITE) & both).mean())
    in_phase = float(((each > 0) & both).mean())
    if opposite >= SECONDS_IN_PHASE and in_phase >= SECONDS_IN_PHASE:
        return ("left" if left >= right else "right"), correlation
    return ("difference" if opposite > 0.5 else "mix"), correlation


def packets(container: Any, *indices: int) -> Iterator[Any]:
    """Packets of the streams in file order, up to the first one that cannot be read."""
    import av

    streams = [container.streams[index] for index in indices]
    try:
        for packet in container.demux(*streams):
            if packet.size:
                yield packet
    except (av.error.FFmpegError, EOFError):
        return


def packet_times(packet: Any) -> tuple[float | None, float | None, float]:
    """Presentation time, decoding time and duration of a packet in seconds."""
    base = float(packet.time_base)
    duration = (packet.duration or 0) * base
    if not duration and packet.stream.type == "video" and packet.stream.average_rate:
        duration = float(1 / packet.stream.average_rate)
    pts, dts = (None if time is None else time * base for time in (packet.pts, packet.dts))
    return pts, dts, duration


def is_discontinuous(container: Any) -> bool:
    """Whether timestamps of this format may start anew (libavformat's AVFMT_TS_DISCONT)."""
    return bool(container.format.flags & 0x0200)


def _decoded(stream: Any, packet: Any) -> Iterator[Any]:
    import av

    with suppress(av.error.FFmpegError, EOFError):
        yield from stream.codec_context.decode(packet)


def _as_float(frame: Any) -> np.ndarray:
    """float32 [channels, n] of decoded audio."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, len(frame.layout.channels)).T
    if samples.dtype.kind == "f":
        return np.asarray(samples, np.float32)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    return samples.astype(np.float32) / float(-np.iinfo(samples.dtype).min)


def _start(stream: Any) -> float | None:
    """Timestamp of a stream's first frame; the demuxer leaves out what decoders skip."""
    return None if stream.start_time is None else float(stream.start_time * stream.time_base)


def _stream_length(stream: Any) -> float:
    """Seconds that a file declares for one stream, 0 if none."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    tag = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    return int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]) if tag else 0.0
