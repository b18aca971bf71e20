"""Write a repaired copy of a file: one clock, one audio format. Runs in the probe server.

The copy is a Matroska file. It holds the packets of the chosen video stream, and the chosen audio stream
decoded, mixed to one channel and encoded as FLAC.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from uniavgen.ingest.io.channels import mixed
from uniavgen.ingest.io.packet_clock import GAP_S, SampleClock, StreamClock, audio_seams, repair_clock
from uniavgen.ingest.io.scan import TimedPacket, timed_packets

SEAM_S = 0.002
"""Audio that is this much late or early against the clock is padded or cut where the format or the clock
changes, or audio is missing or doubled. Elsewhere it is `GAP_S`."""


def write_repaired(
    path: str, target: str, options: dict[str, str], video: int, audio: int, mono: str
) -> None:
    """Copy the two streams of `path` to `target` on the repaired clock.

    `audio` is -1 where there is none. `mono` is the mix of its channels (`Probe.mono`).
    """
    import av

    chosen = [index for index in (video, audio) if index >= 0]
    clocks = {index: StreamClock(index == video) for index in chosen}
    samples = SampleClock()
    with av.open(f"file:{path}", mode="r", options=options) as source:
        for timed in timed_packets(source, audio, *chosen):
            timed.add_to(clocks[timed.packet.stream.index])
            if timed.packet.stream.index == audio:
                samples.add(timed.heard_s, timed.decoded_s)
    clock, seams = repair_clock(clocks), audio_seams(samples.lags)
    with (
        av.open(f"file:{path}", mode="r", options=options) as source,
        av.open(f"file:{target}", mode="w", format="matroska") as copy,
    ):
        video_out = copy.add_stream_from_template(source.streams[video])
        to_annexb = _annexb_filter(source, source.streams[video], video_out)
        writer = _AudioWriter(copy, source.streams[audio], mono) if audio >= 0 else None
        counts = dict.fromkeys(chosen, 0)
        last_dts = -1
        for timed in timed_packets(source, audio, *chosen):
            packet = timed.packet
            index = packet.stream.index
            offset = _offset(clock.offsets[index], counts[index])
            is_seam = index == audio and counts[index] in seams
            counts[index] += 1
            if timed.shown_s is not None and not -1.0 <= timed.shown_s + offset <= clock.duration_s + 1.0:
                continue  # one packet with a wrong timestamp
            if index == audio and writer is not None:
                writer.add(timed, offset, is_seam)
            elif index == video:
                base = packet.stream.time_base
                ticks = round(Fraction(offset) / base)
                packet.pts = None if packet.pts is None else packet.pts + ticks
                packet.dts = None if packet.dts is None else packet.dts + ticks
                if packet.dts is not None:
                    # parts may overlap by the delay of reordered frames
                    step = max(1, round(Fraction(1, 1000) / base))
                    packet.dts = last_dts = max(packet.dts, last_dts + step) if last_dts >= 0 else packet.dts
                    packet.pts = max(packet.pts, packet.dts) if packet.pts is not None else packet.dts
                for each in to_annexb.filter(packet) if to_annexb is not None else [packet]:
                    each.stream = video_out
                    copy.mux(each)
        if writer is not None:
            writer.finish()


def _annexb_filter(source: Any, stream: Any, out: Any) -> Any:
    """Writes the decoder's parameters into the packets; None where they are there.

    A live stream (FLV) may send new ones in mid-stream, which Matroska cannot store.
    """
    from av.bitstream import BitStreamFilterContext

    name = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}.get(stream.codec_context.name)
    return BitStreamFilterContext(name, stream, out) if name and source.format.name == "flv" else None


def _offset(steps: list[tuple[int, float]], number: int) -> float:
    while len(steps) > 1 and steps[1][0] <= number:
        steps.pop(0)
    return steps[0][1]


class _AudioWriter:
    """Decodes packets, and encodes one channel with gaps filled and overlaps cut."""

    def __init__(self, copy: Any, stream: Any, mono: str) -> None:
        self._copy, self._mono = copy, mono
        self._rate = stream.codec_context.sample_rate or 48_000
        self._out = copy.add_stream("flac", rate=self._rate, layout="mono", format="s16")
        self._resampler: Any = None
        self._form: tuple[Any, ...] = ()
        self._position = 0
        """Samples written."""
        self._surplus = 0
        """Samples to leave out, because their time is taken."""
        self._at_seam, self._offset_s = False, 0.0

    def add(self, timed: TimedPacket, offset_s: float, is_seam: bool) -> None:
        """Add the frames of a packet, whose times are `offset_s` late in the copy.

        `is_seam`: audio is missing or doubled before it.
        """
        self._at_seam = self._at_seam or is_seam or offset_s != self._offset_s
        self._offset_s = offset_s
        for number, frame in enumerate(timed.frames):
            time_s = timed.heard_s if number == 0 else None
            self._add_frame(frame, None if time_s is None else time_s + offset_s)

    def _add_frame(self, frame: Any, time_s: float | None) -> None:
        import av

        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form:
            self._flush()
            self._form, self._at_seam = form, True
            mixes = mixed(np.zeros((len(frame.layout.channels), 0), np.int16), _names(frame), self._mono)
            layout = "mono" if mixes is None else frame.layout
            self._resampler = av.AudioResampler(format="s16p", layout=layout, rate=self._rate)
        if time_s is not None:
            self._align(round(time_s * self._rate))
        frame.pts = None
        self._write(self._resampler.resample(frame))

    def _align(self, wanted: int) -> None:
        """Pad or mark as surplus, so that the next sample is the one at position `wanted`."""
        if self._position == 0 and wanted > 0:
            self._position = wanted  # a late start is kept by timestamp
        late = wanted - self._position + self._surplus
        tolerance = (SEAM_S if self._at_seam else GAP_S) * self._rate
        if late > tolerance:
            self._encode(np.zeros(late, np.int16))
        elif late < -tolerance:
            self._surplus = -late
        self._at_seam = False

    def _flush(self) -> None:
        if self._resampler is not None:
            self._write(self._resampler.resample(None))

    def _write(self, frames: list[Any]) -> None:
        for frame in frames:
            samples = frame.to_ndarray()
            mono = mixed(samples, _names(frame), self._mono)
            samples = samples[0] if mono is None else mono
            left_out = min(self._surplus, len(samples))
            self._surplus -= left_out
            self._encode(samples[left_out:])

    def _encode(self, samples: np.ndarray) -> None:
        """Write int16 [n], at most a second at a time."""
        import av

        for start in range(0, len(samples), self._rate):
            block = np.ascontiguousarray(samples[start : start + self._rate])[None]
            frame = av.AudioFrame.from_ndarray(block, "s16", "mono")
            frame.sample_rate = self._rate
            frame.pts, frame.time_base = self._position, Fraction(1, self._rate)
            self._position += frame.samples
            for packet in self._out.encode(frame):
                self._copy.mux(packet)

    def finish(self) -> None:
        self._flush()
        for packet in self._out.encode(None):
            self._copy.mux(packet)


def _names(frame: Any) -> list[str]:
    return [channel.name for channel in frame.layout.channels]
