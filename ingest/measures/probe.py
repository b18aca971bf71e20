"""Step `probe`: container facts of the file. Fails for a file that is no video."""

from __future__ import annotations

from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.records import LocalCopy, Probe, SourceRecord


class ProbeStep(Step):
    """Duration, frame size, rates and codecs."""

    name = "probe"
    pool = "prepare"
    version = "4"
    key_version = "2"
    has_variants = True
    needs = ("fetch",)
    settings = ("sources.audio_track",)
    result = Probe

    def measure(self, record: SourceRecord) -> Probe:
        path, config = record.result(LocalCopy).path, self.config
        return probe_video(path, config.limits, config.sources.audio_track)

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        probe = record.result(Probe)
        return {
            "has_audio": float(probe.has_audio),
            "width_px": float(probe.width),
            "height_px": float(probe.height),
            "fps": probe.fps,
            "bits_per_pixel": bits_per_pixel(probe),
            "interlaced_ratio": probe.interlaced_ratio,
            "hdr": float(bool(probe.transfer)),
            "channel_correlation": probe.channel_correlation,
        }


def bits_per_pixel(probe: Probe) -> float | None:
    """Bits per pixel of one frame of the source; None if its bit rate or frame rate is unknown."""
    pixels_per_s = probe.width * probe.height * probe.fps
    return probe.bit_rate / pixels_per_s if probe.bit_rate > 0 and pixels_per_s > 0 else None
