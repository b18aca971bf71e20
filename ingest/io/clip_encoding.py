"""Encode clips of a source: 16 fps H.264 without audio, 24 kHz mono FLAC. One ffmpeg serves several clips.

Decoding costs more than encoding where a source is large, so clips that lie close together share one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import CutConfig, LimitConfig
from uniavgen.ingest.io.ffmpeg import open_input_at, run_graph
from uniavgen.ingest.io.filters import (
    constant_rate_video,
    exact_span,
    one_channel,
    scaled,
    shown_video,
)
from uniavgen.ingest.records import SEEK_MARGIN_S, Probe
from uniavgen.shards.errors import UserError, printable
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS, samples_for_frames

MAX_CLIPS_PER_PASS = 8
"""Clips that share one pass. Each has an encoder, whose memory counts against `limits.memory_gb`.
Heuristic."""


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

    @property
    def crop(self) -> tuple[float, float, float, float]:
        """The crop (x0, y0, x1, y1) in fractions of the source frame."""
        across, down = 1 / self.source_width, 1 / self.source_height
        x1, y1 = self.x + self.crop_width, self.y + self.crop_height
        return self.x * across, self.y * down, x1 * across, y1 * down


@dataclass(frozen=True)
class ClipEncode:
    """One clip to encode: `frames` frames at 16 fps from `start_s`, to `mp4` and, with audio, to `flac`."""

    start_s: float
    frames: int
    framing: Framing
    mp4: Path
    flac: Path

    @property
    def end_s(self) -> float:
        return self.start_s + self.frames / VIDEO_FPS


def shared_passes(clips: Sequence[ClipEncode]) -> list[list[ClipEncode]]:
    """The clips in order of time, in groups that share one pass. A pass skips nothing between its clips, so
    one that starts later than a seek margin after all before it gets its own.
    """
    passes: list[list[ClipEncode]] = []
    reached_s = 0.0
    for clip in sorted(clips, key=lambda clip: clip.start_s):
        is_near = clip.start_s - reached_s <= SEEK_MARGIN_S
        if passes and is_near and len(passes[-1]) < MAX_CLIPS_PER_PASS:
            passes[-1].append(clip)
        else:
            passes.append([clip])
            reached_s = 0.0
        reached_s = max(reached_s, clip.end_s)
    return passes


def encode_clips(
    path: str, probe: Probe, clips: Sequence[ClipEncode], cut: CutConfig, limits: LimitConfig
) -> None:
    """Encode the clips in one pass, which starts before the first of them.

    A source frame is shown at the nearest time of the 16 fps grid: at most 31 ms off, 0 on average. Audio is
    exact to the sample. A source without audio gives no .flac. Everything is encoded again, because a copied
    stream starts at packet boundaries. Raises UserError: cut-failed if ffmpeg fails, no-space, timeout,
    memory.
    """
    seconds = max(clip.end_s for clip in clips) - min(clip.start_s for clip in clips) + SEEK_MARGIN_S
    graph = _clips_graph(path, probe, clips, cut, limits)
    run_graph(graph, path, seconds, limits, "the clip cannot be cut", "cut-failed")


def _clips_graph(
    path: str, probe: Probe, clips: Sequence[ClipEncode], cut: CutConfig, limits: LimitConfig
) -> Any:
    import ffmpeg

    source, first_clock_s = open_input_at(path, probe, clips[0].start_s, limits)
    videos = _branches(shown_video(source, probe), "split", len(clips))
    # one thread for each encoder: several clips are encoded at a time
    h264 = {"vcodec": "libx264", "pix_fmt": "yuv420p", "crf": cut.crf, "preset": cut.preset}
    options = {**h264, "movflags": "+faststart", "threads": 1, "map_metadata": -1}
    lossless = {"acodec": "flac", "sample_fmt": "s16", "ac": 1, "ar": SAMPLE_RATE, "map_metadata": -1}
    audios = []
    if probe.has_audio:
        resampled = one_channel(source, probe).filter("aresample", SAMPLE_RATE)
        audios = _branches(resampled, "asplit", len(clips))
    outputs = []
    for index, clip in enumerate(clips):
        clock_s = first_clock_s + clip.start_s - clips[0].start_s
        video = _framed(constant_rate_video(videos[index], clock_s, VIDEO_FPS), probe, clip.framing)
        outputs.append(ffmpeg.output(video, f"file:{clip.mp4}", vframes=clip.frames, **options))
        if probe.has_audio:
            audio = exact_span(audios[index], clock_s, samples_for_frames(clip.frames))
            outputs.append(ffmpeg.output(audio, f"file:{clip.flac}", **lossless))
    return ffmpeg.merge_outputs(*outputs) if len(outputs) > 1 else outputs[0]


def _branches(stream: Any, name: str, count: int) -> list[Any]:
    """The stream `count` times."""
    if count == 1:
        return [stream]
    split = stream.filter_multi_output(name, count)
    return [split[index] for index in range(count)]


def _framed(video: Any, probe: Probe, framing: Framing) -> Any:
    """The video cropped and scaled."""
    if (framing.crop_width, framing.crop_height) != (framing.source_width, framing.source_height):
        across, down = 1 / framing.source_width, 1 / framing.source_height
        # in fractions of the frame: the decoded one is smaller than the displayed one for oblong pixels
        crop = [f"iw*{framing.crop_width * across:.9f}", f"ih*{framing.crop_height * down:.9f}"]
        crop += [f"iw*{framing.x * across:.9f}", f"ih*{framing.y * down:.9f}"]
        video = video.filter("crop", *crop, exact=1)
    return scaled(video, probe, framing.width, framing.height, "bicubic").filter("setsar", "1")


def check_lengths(clip: ClipEncode, has_audio: bool, path: str) -> None:
    """Raise UserError (cut-failed) if the files of a clip are not as long as the clip."""
    import av
    import soundfile

    try:
        with av.open(str(clip.mp4), mode="r") as container:
            video = container.streams.video[0]
            count, rate = video.frames, video.average_rate
        samples = soundfile.info(str(clip.flac)).frames if has_audio else 0
    except (av.error.FFmpegError, soundfile.LibsndfileError, IndexError, OSError) as error:
        raise UserError(
            "the cut has no frames or no audio", where=printable(path), kind="cut-failed"
        ) from error
    if count != clip.frames or rate != VIDEO_FPS:
        message = f"the cut has {count} frames at {rate} fps instead of {clip.frames} at {VIDEO_FPS}"
        raise UserError(message, where=printable(path), kind="cut-failed")
    expected = samples_for_frames(clip.frames) if has_audio else 0
    if samples != expected:
        message = f"the cut has {samples} samples instead of {expected}"
        raise UserError(message, where=printable(path), kind="cut-failed")
