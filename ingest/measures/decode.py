"""Step `decode`: one decode pass over a source serves every step that reads its frames (`FrameStep`)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uniavgen.ingest.engine.step import FrameStep, Step, StepGraph
from uniavgen.ingest.io import media
from uniavgen.ingest.records import PlayableCopy, SourceRecord


class DecodeStep(Step):
    """Runs the frame steps that lack a result. Its own entry in the timings is the time spent decoding."""

    name = "decode"
    pool = "sight"
    version = "1"
    needs = ("fetch", "probe", "repair")
    settings = ("faces.analysis_side",)
    stored = False

    def __init__(self, graph: StepGraph, run_dir: Path, corpus_root: Path) -> None:
        super().__init__(graph, run_dir, corpus_root)
        frame_steps = [step for step in graph.steps if issubclass(step, FrameStep)]
        self._frame_steps = tuple(step(graph, run_dir, corpus_root) for step in frame_steps)

    @property
    def members(self) -> tuple[Step, ...]:
        return self._frame_steps

    def measure_members(self, record: SourceRecord, missing: Sequence[Step]) -> dict[str, Any]:
        started = time.perf_counter()
        steps = [step for step in missing if isinstance(step, FrameStep)]
        self.member_seconds = {step.name: 0.0 for step in steps}
        shot_frames = self.run_dir / f"{record.source_id}.tiny"
        try:
            results = self._collect(record, steps, shot_frames)
        finally:
            shot_frames.unlink(missing_ok=True)
        self.member_seconds[self.name] = time.perf_counter() - started - sum(self.member_seconds.values())
        return results

    def _collect(self, record: SourceRecord, steps: list[FrameStep], shot_frames: Path) -> dict[str, Any]:
        config = self.config
        playable = record.result(PlayableCopy)
        path, probe = playable.path, playable.probe
        collectors = {step.name: step.collector(record, shot_frames) for step in steps}
        if all(step.reads_shot_frames for step in steps):
            media.decode_shot_frames(path, probe, config.shots.fps, shot_frames, config.limits)
        else:
            target = shot_frames if any(step.reads_shot_frames for step in steps) else None
            side, shot_fps = config.faces.analysis_side, config.shots.fps
            frames = media.decode_frames(path, probe, side, shot_fps, target, config.limits)
            for index, frame in enumerate(frames):
                for name, collector in collectors.items():
                    started = time.perf_counter()
                    collector.add_frame(index, frame)
                    self.member_seconds[name] += time.perf_counter() - started
        results = {}
        for name, collector in collectors.items():
            started = time.perf_counter()
            results[name] = collector.result()
            self.member_seconds[name] += time.perf_counter() - started
        return results
