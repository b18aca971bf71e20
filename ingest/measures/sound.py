"""Step `sound`: the audio track as a raw 16 kHz file in the run directory."""

from __future__ import annotations

from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io import media
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.io.local_files import file_statuses
from uniavgen.ingest.records import PlayableCopy, Probe, SourceRecord


class SoundStep(Step):
    """The decoded audio track; an empty one if the source has none."""

    name = "sound"
    pool = "speech"
    version = "1"
    needs = ("fetch", "probe", "repair")
    result = AudioFile
    stored = False
    on_demand = True

    def measure(self, record: SourceRecord) -> AudioFile:
        probe = record.result(Probe)
        if not probe.has_audio:
            return AudioFile("", 0)
        path = self.run_dir / f"{record.source_id}.s16"
        if path.is_file():
            return AudioFile(str(path), path.stat().st_size // 2)
        playable = record.result(PlayableCopy)
        return media.decode_audio(playable.path, playable.probe, path, self.config.limits)

    def release(self, record: SourceRecord) -> None:
        kept_bytes = sum(facts.st_size for facts in file_statuses(self.run_dir, "*.s16").values())
        if kept_bytes > self.config.scratch_gb * 2**30:  # the next pool is far behind: it decodes again
            self.discard(record)

    def discard(self, record: SourceRecord) -> None:
        (self.run_dir / f"{record.source_id}.s16").unlink(missing_ok=True)
