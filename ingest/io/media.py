"""Decode a local video: audio to a raw file, frames and spans of both as arrays.

Times are seconds from the container's start; a stream that starts late has silence or its first frame before
it. Every decoder is a bounded child process (`ffmpeg.bounded_child`). Raises UserError (no-ffmpeg,
decode-failed, timeout, memory).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.io.ffmpeg import graph_child, on_file_clock, open_input, open_input_at, run_graph
from uniavgen.ingest.io.filters import (
    constant_rate_video,
    exact_audio,
    scaled,
    shown_video,
    whole_audio,
    whole_video,
)
from uniavgen.ingest.records import AUDIO_RATE, SEEK_MARGIN_S, Probe
from uniavgen.shards.errors import UserError, printable
from uniavgen.shards.timing import VIDEO_FPS

SHOT_FRAME_SIZE = (48, 27)
"""Width and height of the shot detector's frames (TransNetV2's own)."""


def decode_audio(path: str, probe: Probe, target: Path, limits: LimitConfig) -> AudioFile:
    """Decode the whole audio track, mixed down to mono, to a raw file at `target`.

    A late start is padded with silence.

    `duration_s` only sets the time limit; the track is cut at `limits.max_duration_s`. It is never held in
    memory.
    """
    import ffmpeg

    probe = on_file_clock(probe, limits)
    part = target.with_name(target.name + ".part")
    raw = {"format": "s16le", "ac": 1, "ar": AUDIO_RATE, "t": limits.max_duration_s}
    graph = ffmpeg.output(whole_audio(open_input(path, probe, limits), probe), f"file:{part}", **raw)
    try:
        run_graph(graph, path, probe.duration_s, limits, "the audio track cannot be decoded", "decode-failed")
        samples = part.stat().st_size // 2
        if not samples:
            raise UserError("the audio track is empty", where=printable(path), kind="decode-failed")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return AudioFile(str(target), samples)


def decode_audio_span(
    path: str, probe: Probe, start_s: float, seconds: float, rate: int, limits: LimitConfig
) -> np.ndarray:
    """Audio from `start_s`: int16 [round(seconds * rate)], mono at `rate` Hz, silence where there is none."""
    import ffmpeg

    source, clock_s = open_input_at(path, probe, start_s, limits)
    samples = round(seconds * rate)
    audio = exact_audio(source, probe, clock_s, rate, samples)
    graph = ffmpeg.output(audio, "pipe:", format="s16le", ac=1, ar=rate)
    data = run_graph(
        graph, path, seconds + SEEK_MARGIN_S, limits, "the audio track cannot be decoded", "decode-failed"
    )
    pcm = np.frombuffer(data, np.int16)[:samples]
    return np.pad(pcm, (0, samples - len(pcm)))


def decode_frames(
    path: str, probe: Probe, side: int, shot_fps: int, shot_file: Path | None, limits: LimitConfig
) -> Iterator[np.ndarray]:
    """Frames on the 16 fps grid: uint8 [H, W, 3] RGB, longest side `side`; frame i is at i / 16 s.

    The same decode pass writes the shot detector's frames into `shot_file`, if one is named: raw RGB of 48 x
    27 at `shot_fps`. Decoding stops when the caller stops iterating, and at `limits.max_duration_s`.
    """
    import ffmpeg

    probe = on_file_clock(probe, limits)
    width, height = fitted_size(probe.width, probe.height, side)
    video = whole_video(open_input(path, probe, limits), probe)
    outputs = video.filter_multi_output("split") if shot_file is not None else [video]
    grid = scaled(outputs[0].filter("fps", fps=VIDEO_FPS, start_time=0), probe, width, height, "area")
    raw = {"format": "rawvideo", "pix_fmt": "rgb24", "t": limits.max_duration_s}
    graph = ffmpeg.output(grid, "pipe:", **raw)
    if shot_file is not None:
        graph = ffmpeg.merge_outputs(graph, _shot_output(outputs[1], probe, shot_fps, shot_file, raw))
    count = 0
    with graph_child(graph, probe.duration_s, limits) as child:
        for frame in _read_frames(child, width, height):
            count += 1
            yield frame
    child.check(path, "the video track cannot be decoded", "decode-failed")
    if not count:
        raise UserError("the video track has no frame", where=printable(path), kind="decode-failed")


def decode_shot_frames(path: str, probe: Probe, shot_fps: int, shot_file: Path, limits: LimitConfig) -> None:
    """Write the shot detector's frames alone, as `decode_frames` does."""
    probe = on_file_clock(probe, limits)
    raw = {"format": "rawvideo", "pix_fmt": "rgb24", "t": limits.max_duration_s}
    graph = _shot_output(whole_video(open_input(path, probe, limits), probe), probe, shot_fps, shot_file, raw)
    run_graph(graph, path, probe.duration_s, limits, "the video track cannot be decoded", "decode-failed")


def decode_clip_frames(
    path: str, probe: Probe, start_s: float, seconds: float, fps: int, side: int, limits: LimitConfig
) -> np.ndarray:
    """Frames of a span at a constant rate: uint8 [round(seconds * fps), H, W, 3] RGB, longest side `side`.

    Frame i is at `start_s` + i / `fps`; after the end of the video its last frame is repeated.
    """
    import ffmpeg

    width, height = fitted_size(probe.width, probe.height, side)
    source, clock_s = open_input_at(path, probe, start_s, limits)
    count = round(seconds * fps)
    video = constant_rate_video(shown_video(source, probe), clock_s, fps)
    video = scaled(video, probe, width, height, "area")
    graph = ffmpeg.output(video, "pipe:", format="rawvideo", pix_fmt="rgb24", vframes=count)
    with graph_child(graph, seconds + SEEK_MARGIN_S, limits) as child:
        frames = list(_read_frames(child, width, height))
    child.check(path, "the video track cannot be decoded", "decode-failed")
    if not frames:
        raise UserError(f"there is no frame at {start_s:.3f} s", where=printable(path), kind="decode-failed")
    return np.stack(frames + frames[-1:] * (count - len(frames)))


def fitted_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Even width and height with the longest side at most `longest`, aspect kept to the pixel; never
    enlarged.
    """
    scale = min(1.0, longest / max(width, height, 1))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _shot_output(video: Any, probe: Probe, shot_fps: int, shot_file: Path, raw: dict[str, Any]) -> Any:
    import ffmpeg

    small = scaled(video.filter("fps", fps=shot_fps, start_time=0), probe, *SHOT_FRAME_SIZE, "area")
    return ffmpeg.output(small, f"file:{shot_file}", **raw)


def _read_frames(child: Any, width: int, height: int) -> Iterator[np.ndarray]:
    size = width * height * 3
    while len(data := child.read(size)) == size:
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
