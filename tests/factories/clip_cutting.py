"""Cut clips outside of an ingest: one alone, or those of a source as the step `cut` does."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import CutConfig, IngestConfig, LimitConfig
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.io.clip_encoding import ClipEncode, check_lengths, encode_clips
from uniavgen.ingest.io.media import decode_audio, decode_frames
from uniavgen.ingest.measures.cut import CutStep, choose_framing
from uniavgen.ingest.measures.picture import PictureCollector
from uniavgen.ingest.measures.registry import step_graph
from uniavgen.ingest.records import (
    ClipSync,
    FacesSeen,
    FaceTable,
    MeasuredRows,
    PlayableCopy,
    Probe,
    Proposal,
    Proposals,
    SourceRecord,
    SyncMeasures,
)
from uniavgen.shards.corpus.tables import clip_id


def cut_one(
    path: str,
    probe: Probe,
    start_s: float,
    frames: int,
    folder: Path,
    config: CutConfig | None = None,
    boxes: np.ndarray | None = None,
) -> ClipEncode:
    """`frames` frames from `start_s` as `folder`/clip.mp4 and clip.flac. `boxes` [N, 4] of the face."""
    config, limits = config or CutConfig(), LimitConfig()
    folder.mkdir(parents=True, exist_ok=True)
    framing = choose_framing(probe.width, probe.height, np.zeros((0, 4)) if boxes is None else boxes, config)
    clip = ClipEncode(start_s, frames, framing, folder / "clip.mp4", folder / "clip.flac")
    encode_clips(path, probe, [clip], config, limits)
    check_lengths(clip, probe.has_audio, path)
    return clip


def analysed_record(path: Path, probe: Probe, playable: Path, folder: Path) -> SourceRecord:
    """A source whose audio and frames were decoded from `playable` as `probe` says, without proposals."""
    limits, record = LimitConfig(), SourceRecord(str(path), f"{zlib.crc32(str(path).encode()):032x}")
    collector = PictureCollector()
    for index, frame in enumerate(decode_frames(str(playable), probe, 64, 1, None, limits)):
        collector.add_frame(index, frame)
    audio = AudioFile("", 0)
    if probe.has_audio:
        audio = decode_audio(str(playable), probe, folder / "analysed.s16", limits)
    results = [probe, PlayableCopy(str(playable), probe), collector.result(), audio]
    record.results = {type(result): result for result in results}
    return record


def run_cut_step(
    record: SourceRecord,
    spans: Sequence[tuple[float, float]],
    corpus: Path,
    boxes: np.ndarray | None = None,
    **settings: Any,
) -> dict[tuple[float, float], str]:
    """Cut the spans as clips of the record into the corpus; the failure message of each that failed.

    `boxes` float32 [N, 4] of the face in the first N frames; without it no face was seen.
    """
    rows = [
        {"clip_id": clip_id(record.source_id, *span), "start_s": span[0], "end_s": span[1]} for span in spans
    ]
    boxes = np.zeros((0, 4), np.float32) if boxes is None else boxes
    columns = dict.fromkeys(FaceTable.__dataclass_fields__, np.zeros(len(boxes), np.float32))
    columns |= {"frame": np.arange(len(boxes)), "track": np.zeros(len(boxes), np.int32)}
    faces = FaceTable(**columns | {"box": boxes, "oval": np.zeros((len(boxes), 36, 2), np.float32)})
    none = np.zeros(0, np.int16)
    for result in (
        MeasuredRows(rows, {}),
        Proposals([Proposal(*span) for span in spans]),
        FacesSeen(none > 0, none, none, faces),
        SyncMeasures([ClipSync(None, {}) for _ in spans]),
    ):
        record.results[type(result)] = result
    run_dir = corpus / ".work" / "run"
    run_dir.mkdir(parents=True, exist_ok=True)
    step = CutStep(step_graph(IngestConfig.model_validate({"cut": settings})), run_dir, corpus)
    step.measure(record)
    assert not [*run_dir.glob("*.mp4")]
    return {
        span: record.clip_failures[row["clip_id"]].message
        for span, row in zip(spans, rows, strict=True)
        if row["clip_id"] in record.clip_failures
    }
