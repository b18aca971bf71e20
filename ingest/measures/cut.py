"""Step `cut`: media files of each clip: 16 fps H.264 without audio, 24 kHz mono FLAC, face track."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import CutConfig, IngestConfig
from uniavgen.ingest.engine.clip_files import ClipFiles
from uniavgen.ingest.engine.step import Step, StepGraph
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.io.clip_encoding import ClipEncode, Framing, check_lengths, encode_clips, shared_passes
from uniavgen.ingest.io.clip_proof import (
    SEARCH_S,
    WHOLE,
    clip_pictures,
    clip_sound,
    compare_pictures,
    compare_sound,
    cropped,
    is_resolved,
    luma_of,
    picture_cells,
    resampled,
)
from uniavgen.ingest.io.ffmpeg import PINNED_VERSION, ffmpeg_variant
from uniavgen.ingest.io.media import decode_frames
from uniavgen.ingest.measures.clip_parts import clip_face, clip_frames
from uniavgen.ingest.measures.picture import THUMBNAIL_WIDTH, thumbnail
from uniavgen.ingest.models.face_reader import OVAL
from uniavgen.ingest.records import (
    AUDIO_RATE,
    CutMedia,
    Failure,
    FrameTable,
    MeasuredRows,
    PlayableCopy,
    Probe,
    Proposals,
    SourceRecord,
)
from uniavgen.shards.errors import UserError, printable
from uniavgen.shards.sample import FaceTrack
from uniavgen.shards.timing import VIDEO_FPS

CLIP_FAULTS = ("cut-failed", "clip-differs")
"""Kinds of errors that cost one clip, not its source. Others are faults of the machine (no-space, timeout,
memory), which say nothing about the clip."""


class CutStep(Step):
    """Cuts the clips into the corpus. Files that were cut by the same recipe are kept."""

    name = "cut"
    pool = "cut"
    version = "2"
    needs = ("measure",)
    settings = ("cut",)
    result = CutMedia
    stored = False

    @classmethod
    def program(cls, config: IngestConfig) -> str:
        return ffmpeg_variant(config.limits)

    def __init__(self, graph: StepGraph, run_dir: Path, corpus_root: Path) -> None:
        super().__init__(graph, run_dir, corpus_root)
        self._files = ClipFiles(corpus_root, run=run_dir.name)

    def load(self) -> None:
        """Check that this machine cuts with the ffmpeg with which the run was started."""
        usual = f"ffmpeg {PINNED_VERSION}"
        here, expected = self.program(self.config) or usual, self.graph.programs[self.name] or usual
        if here != expected:
            raise UserError(
                f"{here} is here, the run was started with {expected}",
                where=platform.node(),
                hint="install the same version on every node",
                kind="broken-ffmpeg",
            )

    def measure(self, record: SourceRecord) -> CutMedia:
        rows = record.result(MeasuredRows).clips
        framings = [self._framing(record, index) for index in range(len(rows))]
        recipes = {
            row["clip_id"]: self._recipe(record, row, framing)
            for row, framing in zip(rows, framings, strict=True)
        }
        extensions = ("mp4", "flac") if record.result(Probe).has_audio else ("mp4",)
        missing = self._files.start_cutting(record.source_id, recipes, extensions)
        wanted = [self._encode(row, framing) for row, framing in zip(rows, framings, strict=True)]
        errors = self._cut_all(record, [clip for clip in wanted if clip.mp4.stem in missing])
        record.clip_failures = {}
        for index, (row, clip) in enumerate(zip(rows, wanted, strict=True)):
            name = row["clip_id"]
            if name in errors:
                record.clip_failures[name] = self._clip_failure(record, row, errors[name])
                self._files.delete([name])
            else:
                self._files.write(name, "face.npz", face_track(record, index, clip.framing).to_bytes())
        return CutMedia()

    def _cut_all(self, record: SourceRecord, clips: list[ClipEncode]) -> dict[str, UserError]:
        """Cut and check clips; the errors of those that fail, by clip_id."""
        errors: dict[str, UserError] = {}
        playable, config = record.result(PlayableCopy), self.config
        waiting = shared_passes(clips)
        while waiting:
            together = waiting.pop(0)
            try:
                with _temporary(together):
                    encode_clips(playable.path, playable.probe, together, config.cut, config.limits)
                    for clip in together:
                        try:
                            self._finish(record, clip)
                        except UserError as error:
                            errors[clip.mp4.stem] = _of_clip(error, playable.path)
            except UserError as error:
                _of_clip(error, playable.path)
                if len(together) > 1:  # one clip must not cost the others
                    waiting = [[clip] for clip in together] + waiting
                else:
                    errors[together[0].mp4.stem] = error
        return errors

    def _finish(self, record: SourceRecord, clip: ClipEncode) -> None:
        """Check an encoded clip, and move its files into the corpus."""
        playable = record.result(PlayableCopy)
        check_lengths(clip, playable.probe.has_audio, playable.path)
        self._prove(record, clip)
        for part in (clip.mp4, clip.flac)[: 1 + playable.probe.has_audio]:
            final = self._files.path(part.stem, part.suffix[1:])
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, final)
        self._files.mark_cut(record.source_id, clip.mp4.stem)

    def _prove(self, record: SourceRecord, clip: ClipEncode) -> None:
        """Raise UserError (clip-differs) if a clip does not hold what was analysed."""
        reasons = []
        if record.result(Probe).has_audio:
            sound = record.result(AudioFile).span(clip.start_s - SEARCH_S, clip.end_s + SEARCH_S)
            analysed = resampled(sound.astype(np.float32) / 32768, AUDIO_RATE)
            reasons.append(compare_sound(clip_sound(clip.flac), analysed).fault)
        cells, crop, first = self._analysed_cells(record, clip)
        reasons.append(compare_pictures(clip_pictures(clip.mp4, crop), cells, first).fault)
        if any(reasons):
            what = "; ".join(reason for reason in reasons if reason)
            raise UserError(what, where=printable(record.uri), kind="clip-differs")

    def _analysed_cells(
        self, record: SourceRecord, clip: ClipEncode
    ) -> tuple[np.ndarray, tuple[float, float, float, float], int]:
        """Cells of frames as the analysis decodes them, uint8 [n, 9, 16]; the part of the picture that they
        cover which the clip shows; and which of the frames is the clip's first.
        """
        frames, crop, first = record.result(FrameTable), clip.framing.crop, round(clip.start_s * VIDEO_FPS)
        playable, limits = record.result(PlayableCopy), self.config.limits
        if not is_resolved(crop):  # cells of the crop alone
            side = self.config.faces.analysis_side
            decoded = decode_frames(playable.path, playable.probe, side, 1, None, limits)
            wanted = islice(decoded, max(0, first - 1), first + clip.frames + 1)
            own = np.array([picture_cells(luma_of(cropped(frame, crop))) for frame in wanted], np.uint8)
            return own, WHOLE, min(first, 1)
        if frames.cells is None:  # measured by release 0.3.0
            decoded = decode_frames(playable.path, playable.probe, THUMBNAIL_WIDTH, 1, None, limits)
            cells = [picture_cells(thumbnail(frame)) for frame in decoded]
            frames = record.results[FrameTable] = replace(frames, cells=np.array(cells, np.uint8))
        assert frames.cells is not None
        return frames.cells, crop, first

    def _clip_failure(self, record: SourceRecord, row: dict[str, Any], error: UserError) -> Failure:
        span = f"{row['start_s']:.2f} to {row['end_s']:.2f} s of {printable(record.uri)}"
        return Failure(self.name, error.kind, f"{error.what} ({span})")

    def _encode(self, row: dict[str, Any], framing: Framing) -> ClipEncode:
        name = row["clip_id"]
        frames = round((row["end_s"] - row["start_s"]) * VIDEO_FPS)
        parts = self.run_dir / f"{name}.mp4", self.run_dir / f"{name}.flac"
        return ClipEncode(row["start_s"], frames, framing, *parts)

    def _framing(self, record: SourceRecord, index: int) -> Framing:
        probe = record.result(Probe)
        return choose_framing(probe.width, probe.height, clip_face(record, index).box, self.config.cut)

    def _recipe(self, record: SourceRecord, row: dict[str, Any], framing: Framing) -> list[Any]:
        """Everything that the content of a clip's files depends on."""
        variants = record.result(Probe).variant, self.graph.programs[self.name]
        return [
            row["start_s"],
            row["end_s"],
            asdict(framing),
            self.config.cut.model_dump(),
            self.version,
            *(variant for variant in variants if variant),
        ]


def _of_clip(error: UserError, path: str) -> UserError:
    """The error, if it is one of a clip. Raises it if it is one of the machine or of the whole source."""
    if error.kind not in CLIP_FAULTS or "No space left" in str(error) or not os.path.exists(path):
        raise error
    return error


@contextmanager
def _temporary(clips: list[ClipEncode]) -> Iterator[None]:
    """Delete the files of these clips that are still in the run directory at the end."""
    try:
        yield
    finally:
        for clip in clips:
            clip.mp4.unlink(missing_ok=True)
            clip.flac.unlink(missing_ok=True)


def face_track(record: SourceRecord, index: int, framing: Framing) -> FaceTrack:
    """The main face in each frame of a clip, in fractions of the cut frame; zeros where it is not seen."""
    first, last = clip_frames(record.result(Proposals).clips[index])
    oval = np.zeros((last - first, len(OVAL), 2), np.float32)
    box = np.zeros((last - first, 4), np.float32)
    score = np.zeros(last - first, np.float32)
    faces = clip_face(record, index)
    rows = faces.frame - first
    oval[rows], box[rows] = framing.transform(faces.oval), framing.transform(faces.box)
    score[rows] = faces.score
    return FaceTrack(oval, box, score)


def choose_framing(width: int, height: int, boxes: np.ndarray, cut: CutConfig) -> Framing:
    """The framing of one clip from a frame of `width` x `height`.

    `boxes` [N, 4] (x0, y0, x1, y1) of the main face are in fractions of the frame. `cut.crop` "none" keeps
    the full frame, except for the edges that the multiple of the size leaves out. "face" keeps a part with
    aspect `cut.crop_aspect` around the median box, `cut.crop_faces` times as high as the face, moved into the
    frame and reduced if it does not fit; around the centre if no face was seen. The size is at most
    `cut.pixels`, in multiples of `cut.multiple`, and never enlarged.
    """
    part, centre = (float(width), float(height)), (width / 2, height / 2)
    if cut.crop == "face":
        part_height = float(height)
        if len(boxes):
            x0, y0, x1, y1 = np.median(boxes, axis=0) * (width, height, width, height)
            centre, part_height = ((x0 + x1) / 2, (y0 + y1) / 2), (y1 - y0) * cut.crop_faces
        part_height = min(part_height, float(height), width / cut.crop_aspect)
        part = (part_height * cut.crop_aspect, part_height)
    out_width, out_height = size_within(*part, cut.pixels, cut.multiple)
    # the aspect of the rounded size differs from the part's: crop, do not distort
    scale = min(part[0] / out_width, part[1] / out_height)
    crop_width = min(width, max(1, round(out_width * scale)))
    crop_height = min(height, max(1, round(out_height * scale)))
    x = min(max(0, round(centre[0] - crop_width / 2)), width - crop_width)
    y = min(max(0, round(centre[1] - crop_height / 2)), height - crop_height)
    return Framing(width, height, x, y, crop_width, crop_height, out_width, out_height)


def size_within(width: float, height: float, pixels: int, multiple: int) -> tuple[int, int]:
    """Largest size in multiples of `multiple` with at most `pixels` pixels and nearly the same aspect.

    Not larger than the frame, but at least one multiple.
    """
    scale = min(1.0, math.sqrt(pixels / (width * height)))
    most = max(1, pixels // multiple**2)
    # rounding errors must not cost a whole multiple
    across = min(most, max(1, int(width * scale / multiple + 1e-6)))
    down = min(most // across, max(1, int(height * scale / multiple + 1e-6)))
    larger = [(a, d) for a in (across, across + 1) for d in (down, down + 1) if a * d <= most]
    fits = [(a, d) for a, d in larger if a * multiple <= width and d * multiple <= height]
    best = max(fits, key=lambda size: size[0] * size[1], default=(across, down))
    return best[0] * multiple, best[1] * multiple
