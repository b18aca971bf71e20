"""Step `cut`: media files of each clip: 16 fps H.264 without audio, 24 kHz mono FLAC, face track."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import CutConfig, LimitConfig
from uniavgen.ingest.engine.clip_files import ClipFiles
from uniavgen.ingest.engine.step import Step, StepGraph
from uniavgen.ingest.io.ffmpeg import SEEK_MARGIN_S, open_input_at, run_graph
from uniavgen.ingest.io.media import constant_rate_video, exact_audio, scaled, shown_video
from uniavgen.ingest.io.uris import printable
from uniavgen.ingest.measures.clip_parts import clip_face, clip_frames
from uniavgen.ingest.models.face_reader import OVAL
from uniavgen.ingest.records import CutMedia, MeasuredRows, PlayableCopy, Probe, Proposals, SourceRecord
from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import FaceTrack
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS, samples_for_frames


class CutStep(Step):
    """Cuts the clips into the corpus. Files that were cut by the same recipe are kept."""

    name = "cut"
    pool = "cut"
    version = "2"
    needs = ("measure",)
    settings = ("cut",)
    result = CutMedia
    stored = False

    def __init__(self, graph: StepGraph, run_dir: Path, corpus_root: Path) -> None:
        super().__init__(graph, run_dir, corpus_root)
        self._files = ClipFiles(corpus_root, run=run_dir.name)

    def measure(self, record: SourceRecord) -> CutMedia:
        rows = record.result(MeasuredRows).clips
        framings = [self._framing(record, index) for index in range(len(rows))]
        recipes = {
            row["clip_id"]: self._recipe(record, row, framing)
            for row, framing in zip(rows, framings, strict=True)
        }
        extensions = ("mp4", "flac") if record.result(Probe).has_audio else ("mp4",)
        missing = self._files.start_cutting(record.source_id, recipes, extensions)
        for index, (row, framing) in enumerate(zip(rows, framings, strict=True)):
            if row["clip_id"] in missing:
                self._cut(record, row, framing)
                self._files.mark_cut(record.source_id, row["clip_id"])
            self._files.write(row["clip_id"], "face.npz", face_track(record, index, framing).to_bytes())
        return CutMedia()

    def _framing(self, record: SourceRecord, index: int) -> Framing:
        probe = record.result(Probe)
        return choose_framing(probe.width, probe.height, clip_face(record, index).box, self.config.cut)

    def _recipe(self, record: SourceRecord, row: dict[str, Any], framing: Framing) -> list[Any]:
        """Everything that the content of a clip's files depends on."""
        variant = record.result(Probe).variant
        return [
            row["start_s"],
            row["end_s"],
            asdict(framing),
            self.config.cut.model_dump(),
            self.version,
            *([variant] if variant else []),
        ]

    def _cut(self, record: SourceRecord, row: dict[str, Any], framing: Framing) -> None:
        playable = record.result(PlayableCopy)
        frames = round((row["end_s"] - row["start_s"]) * VIDEO_FPS)
        target = self._files.path(row["clip_id"], "mp4"), self._files.path(row["clip_id"], "flac")
        cut_clip(
            playable.path,
            playable.probe,
            row["start_s"],
            frames,
            framing,
            target,
            self.run_dir,
            self.config.cut,
            self.config.limits,
        )


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


@dataclass(frozen=True)
class Framing:
    """The crop of a clip, constant over its frames, and the size to which it is scaled.

    `x`, `y`, `crop_width`, `crop_height` are in pixels of the displayed source frame of `source_width` x
    `source_height`.
    """

    source_width: int
    source_height: int
    x: int
    y: int
    crop_width: int
    crop_height: int
    width: int
    height: int

    def transform(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] or boxes [..., 4], from fractions of the source frame to those of the clip's."""
        origin = np.array([self.x, self.y], points.dtype)
        span = np.array([self.crop_width, self.crop_height], points.dtype)
        pairs = points.reshape(*points.shape[:-1], points.shape[-1] // 2, 2)
        transformed = (
            pairs * np.array([self.source_width, self.source_height], points.dtype) - origin
        ) / span
        return transformed.reshape(points.shape).astype(points.dtype)


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


def cut_clip(
    path: str,
    probe: Probe,
    start_s: float,
    frames: int,
    framing: Framing,
    target: tuple[Path, Path],
    run_dir: Path,
    cut: CutConfig,
    limits: LimitConfig,
) -> None:
    """Encode `frames` frames at 16 fps from `start_s`, and audio of that length, to `target` (.mp4, .flac).

    A source frame is shown at the nearest time of the 16 fps grid: at most 31 ms off, 0 on average. Audio is
    exact to the sample. A source without audio gives no .flac. Both files are written to `run_dir` first.
    Everything is encoded again, because a copied stream starts at packet boundaries. Raises UserError:
    cut-failed if an encode has another length, no-space, timeout, memory.
    """
    mp4, flac = (run_dir / final.name for final in target)
    graph = _clip_graph(path, probe, start_s, frames, framing, mp4, flac, cut, limits)
    parts = (mp4, flac) if probe.has_audio else (mp4,)
    try:
        run_graph(
            graph, path, frames / VIDEO_FPS + SEEK_MARGIN_S, limits, "the clip cannot be cut", "cut-failed"
        )
        _check_lengths(parts, frames, path)
        for part, final in zip(parts, target, strict=False):
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, final)
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise


def _clip_graph(
    path: str,
    probe: Probe,
    start_s: float,
    frames: int,
    framing: Framing,
    mp4: Path,
    flac: Path,
    cut: CutConfig,
    limits: LimitConfig,
) -> Any:
    """The ffmpeg graph that encodes one clip."""
    import ffmpeg

    source, clock_s = open_input_at(path, probe, start_s, limits)
    video = constant_rate_video(shown_video(source, probe), clock_s, VIDEO_FPS)
    if (framing.crop_width, framing.crop_height) != (framing.source_width, framing.source_height):
        across, down = 1 / framing.source_width, 1 / framing.source_height
        # in fractions of the frame: the decoded one is smaller than the displayed one for oblong pixels
        crop = [f"iw*{framing.crop_width * across:.9f}", f"ih*{framing.crop_height * down:.9f}"]
        crop += [f"iw*{framing.x * across:.9f}", f"ih*{framing.y * down:.9f}"]
        video = video.filter("crop", *crop, exact=1)
    video = scaled(video, probe, framing.width, framing.height, "bicubic").filter("setsar", "1")
    h264 = {"vcodec": "libx264", "pix_fmt": "yuv420p", "crf": cut.crf, "preset": cut.preset}
    options = {**h264, "movflags": "+faststart", "threads": limits.decoder_threads, "map_metadata": -1}
    graph = ffmpeg.output(video, f"file:{mp4}", vframes=frames, **options)
    if probe.has_audio:
        audio = exact_audio(source, probe, clock_s, SAMPLE_RATE, samples_for_frames(frames))
        lossless = {"acodec": "flac", "sample_fmt": "s16", "ac": 1, "ar": SAMPLE_RATE}
        graph = ffmpeg.merge_outputs(graph, ffmpeg.output(audio, f"file:{flac}", map_metadata=-1, **lossless))
    return graph


def _check_lengths(parts: tuple[Path, ...], frames: int, path: str) -> None:
    import av
    import soundfile

    with av.open(str(parts[0]), mode="r") as container:
        video = container.streams.video[0]
        count, rate = video.frames, video.average_rate
    if count != frames or rate != VIDEO_FPS:
        message = f"the cut has {count} frames at {rate} fps instead of {frames} at {VIDEO_FPS}"
        raise UserError(message, where=printable(path), kind="cut-failed")
    expected = samples_for_frames(frames)
    for part in parts[1:]:
        samples = soundfile.info(str(part)).frames
        if samples != expected:
            message = f"the cut has {samples} samples instead of {expected}"
            raise UserError(message, where=printable(path), kind="cut-failed")
