"""Step `repair`: the file that every later step decodes, a repaired copy where the source needs one."""

from __future__ import annotations

from pathlib import Path

from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io.probe_client import repair_video, repaired_facts
from uniavgen.ingest.records import LocalCopy, PlayableCopy, Probe, SourceRecord


class RepairStep(Step):
    """Path and facts of the file to decode.

    Analysis decodes from the beginning and cutting seeks. In this file both find the same clock.
    """

    name = "repair"
    pool = "prepare"
    version = "1"
    needs = ("fetch", "probe")
    result = PlayableCopy
    stored = False
    on_demand = True
    in_keys = False

    def measure(self, record: SourceRecord) -> PlayableCopy:
        path, probe = record.result(LocalCopy).path, record.result(Probe)
        if not probe.repairs:
            return PlayableCopy(path, probe)
        target = self._target(record)
        if target.is_file():
            return PlayableCopy(str(target), repaired_facts(probe))
        return PlayableCopy(str(target), repair_video(path, probe, target, self.config.limits))

    def discard(self, record: SourceRecord) -> None:
        self._target(record).unlink(missing_ok=True)

    def _target(self, record: SourceRecord) -> Path:
        return self.run_dir / f"{record.source_id}.repaired.mkv"
