"""What is in a video: its facts, its sound, its pictures, as numbers and arrays.

Goes in: the path of a local file. Comes out: a `Probe`, a `Sound`, pictures. Times are seconds from the container's start;
a stream that starts late has silence or its first picture before it. Every decoder is a bounded child (`ingest.child`).
Raises UserError (kinds: no-ffmpeg, not-a-video, no-video, decode-failed, too-large, too-long, timeout, memory).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.io.ffmpeg import SEEK_MARGIN_S, graph_child, open_input, open_input_at, run_graph
from uniavgen.ingest.io.probe_client import ask
from uniavgen.ingest.io.uris import printable
from uniavgen.ingest.records import AUDIO_RATE, Probe
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS

SHOT_FRAME_SIZE = (48, 27)
"""Width and height of the shot detector's pictures (TransNetV2's own)."""

INTERLACED = 0.5
"""Share of interlaced frames from which a source is deinterlaced before anything else (our choice)."""


def probe(path: str, limits: LimitConfig) -> Probe:
    """What is in the file, by a child process that may hang or die without harm."""
    facts = ask(path, limits)
    if "error" in facts:
        raise UserError(facts["error"], where=printable(path), kind=facts["kind"])
    found = Probe(**facts)
    if found.duration_s > limits.max_duration_s:
        raise UserError(
            f"{found.duration_s:.0f} s long, the limit is {limits.max_duration_s:.0f} s",
            where=printable(path),
            hint="split it or raise limits.max_duration_s",
            kind="too-long",
        )
    return found


def decode_audio(path: str, duration_s: float, target: Path, limits: LimitConfig) -> AudioFile:
    """The whole sound track as a raw file at `target` (see `Sound`), late starts padded, mixed down to mono.

    `duration_s` only sets the time limit; the sound ends at `limits.max_duration_s` at the latest. Never held in memory.
    """
    import ffmpeg

    part = target.with_name(target.name + ".part")
    raw = {"format": "s16le", "ac": 1, "ar": AUDIO_RATE, "t": limits.max_duration_s}
    graph = ffmpeg.output(whole_audio(open_input(path, limits)), f"file:{part}", **raw)
    try:
        run_graph(graph, path, duration_s, limits, "the sound cannot be decoded", "decode-failed")
        samples = part.stat().st_size // 2
        if not samples:
            raise UserError("the sound track holds no sound", where=printable(path), kind="decode-failed")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return AudioFile(str(target), samples)


def decode_audio_span(
    path: str, start_s: float, seconds: float, rate: int, limits: LimitConfig
) -> np.ndarray:
    """The sound from `start_s`: int16 [round(seconds * rate)], mono at `rate` Hz, silence where there is none."""
    import ffmpeg

    source, clock_s = open_input_at(path, start_s, limits)
    samples = round(seconds * rate)
    heard = exact_audio(source, clock_s, rate, samples)
    graph = ffmpeg.output(heard, "pipe:", format="s16le", ac=1, ar=rate)
    data = run_graph(
        graph, path, seconds + SEEK_MARGIN_S, limits, "the sound cannot be decoded", "decode-failed"
    )
    found = np.frombuffer(data, np.int16)[:samples]
    return np.pad(found, (0, samples - len(found)))


def decode_frames(
    path: str, probe: Probe, side: int, shot_fps: int, tiny: Path | None, limits: LimitConfig
) -> Iterator[np.ndarray]:
    """Pictures on the 16 fps grid: uint8 [H, W, 3] RGB, longest side `side`; frame i stands at i / 16 s.

    The same pass of the decoder writes a second stream for the shot detector into the file `tiny`, if one is named: raw RGB
    of 48 x 27 at `shot_fps`. Decoding stops early when the caller stops asking, and at `limits.max_duration_s`.
    """
    import ffmpeg

    width, height = fitted_size(probe.width, probe.height, side)
    picture = shown_video(open_input(path, limits), probe)
    taken = picture.filter_multi_output("split") if tiny is not None else [picture]
    grid = taken[0].filter("fps", fps=VIDEO_FPS, start_time=0).filter("scale", width, height, flags="area")
    raw = {"format": "rawvideo", "pix_fmt": "rgb24", "t": limits.max_duration_s}
    graph = ffmpeg.output(grid, "pipe:", **raw)
    if tiny is not None:
        graph = ffmpeg.merge_outputs(graph, _tiny_output(taken[1], shot_fps, tiny, raw))
    frames = 0
    with graph_child(graph, probe.duration_s, limits) as child:
        for picture in _pictures(child, width, height):
            frames += 1
            yield picture
    child.check(path, "the picture cannot be decoded", "decode-failed")
    if not frames:
        raise UserError("the picture track holds no picture", where=printable(path), kind="decode-failed")


def decode_shot_frames(path: str, probe: Probe, shot_fps: int, tiny: Path, limits: LimitConfig) -> None:
    """The shot detector's stream alone, as `decode_frames` writes it."""
    raw = {"format": "rawvideo", "pix_fmt": "rgb24", "t": limits.max_duration_s}
    graph = _tiny_output(shown_video(open_input(path, limits), probe), shot_fps, tiny, raw)
    run_graph(graph, path, probe.duration_s, limits, "the picture cannot be decoded", "decode-failed")


def decode_clip_frames(
    path: str, probe: Probe, start_s: float, seconds: float, fps: int, side: int, limits: LimitConfig
) -> np.ndarray:
    """Pictures of a stretch at a constant rate: uint8 [round(seconds * fps), H, W, 3] RGB, longest side `side`.

    Picture i stands at `start_s` + i / `fps`; after the film's end its last picture is repeated.
    """
    import ffmpeg

    width, height = fitted_size(probe.width, probe.height, side)
    source, clock_s = open_input_at(path, start_s, limits)
    count = round(seconds * fps)
    picture = constant_rate_video(shown_video(source, probe), clock_s, fps).filter(
        "scale", width, height, flags="area"
    )
    graph = ffmpeg.output(picture, "pipe:", format="rawvideo", pix_fmt="rgb24", vframes=count)
    with graph_child(graph, seconds + SEEK_MARGIN_S, limits) as child:
        pictures = list(_pictures(child, width, height))
    child.check(path, "the picture cannot be decoded", "decode-failed")
    if not pictures:
        raise UserError(
            f"there is no picture at {start_s:.3f} s", where=printable(path), kind="decode-failed"
        )
    return np.stack(pictures + pictures[-1:] * (count - len(pictures)))


def shown_video(source: Any, probe: Probe) -> Any:
    """The input's pictures as they are shown, fields of different times taken apart (bwdif, one frame a pair)."""
    if probe.interlaced_ratio < INTERLACED:
        return source.video
    return source.video.filter("bwdif", mode="send_frame", parity="tff" if probe.top_field_first else "bff")


def whole_audio(source: Any) -> Any:
    """The input's sound from the container's time 0, gaps filled with silence."""
    return source.audio.filter("aresample", **{"async": 1, "first_pts": 0})


def constant_rate_video(picture: Any, clock_s: float, fps: int) -> Any:
    """Pictures at a constant rate from `clock_s` on the clock of an input, and one more after the last."""
    # a container may count time in whole frames, in which the move would be rounded
    moved = (
        picture.filter("settb", "AVTB")
        .filter("setpts", f"PTS-{clock_s:.6f}/TB")
        .filter("fps", fps=fps, start_time=0)
    )
    return moved.filter("tpad", stop=1, stop_mode="clone")


def exact_audio(source: Any, clock_s: float, rate: int, samples: int) -> Any:
    """Exactly `samples` at `rate` from `clock_s` on the clock of an input, silence where there is no sound."""
    heard = source.audio.filter("aresample", rate).filter("atrim", start=f"{clock_s:.6f}")
    heard = heard.filter("asetpts", f"PTS-{clock_s:.6f}/TB")
    heard = heard.filter("aresample", **{"async": 1, "first_pts": 0}).filter("apad", whole_len=samples)
    # an encoder takes its block size from the first frame, which the first trim may have left with 8 samples
    return heard.filter("atrim", end_sample=samples).filter("asetnsamples", n=1024, pad=0)


def fitted_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Even width and height with the longest side at most `longest`, the aspect kept to the pixel; never enlarged."""
    scale = min(1.0, longest / max(width, height, 1))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _tiny_output(picture: Any, shot_fps: int, tiny: Path, raw: dict[str, Any]) -> Any:
    import ffmpeg

    small = picture.filter("fps", fps=shot_fps, start_time=0).filter("scale", *SHOT_FRAME_SIZE, flags="area")
    return ffmpeg.output(small, f"file:{tiny}", **raw)


def _pictures(child: Any, width: int, height: int) -> Iterator[np.ndarray]:
    size = width * height * 3
    while len(data := child.read(size)) == size:
        yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
