"""Write a repaired copy of a file: one clock, one audio format. Runs in the probe server.

The copy is a Matroska file. It holds the packets of the chosen video stream, and the chosen audio stream
decoded and encoded as FLAC.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from uniavgen.ingest.io.packet_clock import StreamClock, repair_clock
from uniavgen.ingest.io.scan import packet_times, packets

GAP_S, SEAM_S = 0.1, 0.002
"""Audio that is this much late or early against the clock is padded or cut: GAP_S within a part (the value of
ffmpeg's aresample=async=1), SEAM_S where the format or the clock changes."""


def write_repaired(path: str, target: str, options: dict[str, str], video: int, audio: int) -> None:
    """Copy the two streams of `path` to `target` on the repaired clock. `audio` is -1 where there is none."""
    import av

    chosen = [index for index in (video, audio) if index >= 0]
    clocks = {index: StreamClock(index == video) for index in chosen}
    with av.open(f"file:{path}", mode="r", options=options) as source:
        for packet in packets(source, *chosen):
            clocks[packet.stream.index].add(*packet_times(packet))
    clock = repair_clock(clocks)
    with (
        av.open(f"file:{path}", mode="r", options=options) as source,
        av.open(f"file:{target}", mode="w", format="matroska") as copy,
    ):
        video_out = copy.add_stream_from_template(source.streams[video])
        writer = _AudioWriter(copy, source.streams[audio]) if audio >= 0 else None
        counts = dict.fromkeys(chosen, 0)
        last_dts, last_offset = -1, 0.0
        for packet in packets(source, *chosen):
            index = packet.stream.index
            offset = _offset(clock.offsets[index], counts[index])
            counts[index] += 1
            base = packet.stream.time_base
            ticks = round(Fraction(offset) / base)
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
            shown = packet.pts if packet.pts is not None else packet.dts
            if shown is not None and not -1.0 <= shown * base <= clock.duration_s + 1.0:
                continue  # one packet with a wrong timestamp
            if index == audio and writer is not None:
                if offset != last_offset:
                    writer.seam()
                last_offset = offset
                writer.add(packet)
            elif index == video:
                if packet.dts is not None:
                    # parts may overlap by the delay of reordered frames
                    step = max(1, round(Fraction(1, 1000) / base))
                    packet.dts = last_dts = max(packet.dts, last_dts + step) if last_dts >= 0 else packet.dts
                    packet.pts = max(packet.pts, packet.dts) if packet.pts is not None else packet.dts
                packet.stream = video_out
                copy.mux(packet)
        if writer is not None:
            writer.finish()


def _offset(steps: list[tuple[int, float]], number: int) -> float:
    while len(steps) > 1 and steps[1][0] <= number:
        steps.pop(0)
    return steps[0][1]


class _AudioWriter:
    """Decodes packets, and encodes them in one format with gaps filled and overlaps cut."""

    def __init__(self, copy: Any, stream: Any) -> None:
        self._copy = copy
        self._rate = stream.codec_context.sample_rate or 48_000
        self._layout = "mono" if stream.codec_context.channels == 1 else stream.codec_context.layout.name
        self._out = copy.add_stream("flac", rate=self._rate, layout=self._layout, format="s16")
        self._context = stream.codec_context
        self._resampler: Any = None
        self._form: tuple[Any, ...] = ()
        self._position = 0
        """Samples written."""
        self._surplus = 0
        """Samples to leave out, because their time is taken."""
        self._at_seam = False

    def add(self, packet: Any) -> None:
        import av

        try:
            frames = self._context.decode(packet)
        except (av.error.FFmpegError, EOFError):
            return
        for frame in frames:
            self._add_frame(frame)

    def _add_frame(self, frame: Any) -> None:
        import av

        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form:
            self._write(self._resampler.resample(None) if self._resampler is not None else [])
            self._form, self._at_seam = form, True
            self._resampler = av.AudioResampler(format="s16", layout=self._layout, rate=self._rate)
        if frame.pts is not None:
            wanted = round(float(frame.pts * frame.time_base) * self._rate)
            if self._position == 0 and wanted > 0:
                self._position = wanted  # a late start is kept by timestamp
            late = wanted - self._position + self._surplus
            if late > (SEAM_S if self._at_seam else GAP_S) * self._rate:
                self._pad(late)
            elif late < -(SEAM_S if self._at_seam else GAP_S) * self._rate:
                self._surplus = -late
            self._at_seam = False
        frame.pts = None
        self._write(self._resampler.resample(frame))

    def seam(self) -> None:
        """The clock changes before the next packet."""
        self._at_seam = True

    def _pad(self, samples: int) -> None:
        import av

        channels = len(av.AudioLayout(self._layout).channels)
        while samples > 0:
            count = min(samples, self._rate)
            silence = av.AudioFrame.from_ndarray(
                np.zeros((1, count * channels), np.int16), "s16", self._layout
            )
            silence.sample_rate = self._rate
            self._write([silence])
            samples -= count

    def _write(self, frames: list[Any]) -> None:
        import av

        for frame in frames:
            if self._surplus:
                left_out = min(self._surplus, frame.samples)
                self._surplus -= left_out
                if left_out == frame.samples:
                    continue
                channels = len(frame.layout.channels)
                rest = np.ascontiguousarray(frame.to_ndarray()[:, left_out * channels :])
                frame = av.AudioFrame.from_ndarray(rest, "s16", self._layout)
                frame.sample_rate = self._rate
            frame.pts = self._position
            frame.time_base = Fraction(1, self._rate)
            self._position += frame.samples
            for packet in self._out.encode(frame):
                self._copy.mux(packet)

    def finish(self) -> None:
        if self._resampler is not None:
            self._write(self._resampler.resample(None))
        for packet in self._out.encode(None):
            self._copy.mux(packet)
