"""ffmpeg, kept on a short lead: probe, decode sound, decode pictures, cut clips.

Goes in: a path. Comes out: numbers and arrays, or files at their final place by rename. Every decoder is a child process
with a wall-clock limit and an address-space limit, reads local files in named containers only, and never the network.
Raises UserError (kinds: no-ffmpeg, not-a-video, no-video, decode-failed, too-large, too-long, timeout, cut-failed).
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from ingest.config import CutConfig, LimitConfig
from ingest.probing import DEMUXERS
from ingest.records import AUDIO_RATE, Probe
from shards.clock import SAMPLE_RATE, VIDEO_FPS, samples_for_frames
from shards.errors import UserError

SEEK_MARGIN_S = 10.0
"""A cut seeks this far ahead of its start and drops frames exactly: some containers land seconds beside the asked place."""


@lru_cache(maxsize=1)
def ffmpeg_path() -> str:
    """The ffmpeg on PATH, else the one inside the imageio-ffmpeg wheel. Raises UserError where there is neither."""
    on_path = shutil.which("ffmpeg")
    if on_path:
        return on_path
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise UserError("ffmpeg is missing", do="install ffmpeg, or pip install imageio-ffmpeg", kind="no-ffmpeg") from error


def probe(path: str, limits: LimitConfig) -> Probe:
    """What is in the file, by a child process that may hang or die without harm."""
    command = [sys.executable, "-m", "ingest.probing", path, str(limits.max_pixels)]
    with _child(command, limits.probe_seconds, limits) as child:
        answer = child.read()
    if child.code:
        raise UserError(f"opening the file failed: {child.complaint}", where=path, kind="not-a-video")
    facts = json.loads(answer)
    if "error" in facts:
        raise UserError(facts["error"], where=path, kind=facts["kind"])
    found = Probe(**facts)
    if found.duration_s > limits.max_duration_s:
        raise UserError(
            f"{found.duration_s:.0f} s long, the limit is {limits.max_duration_s:.0f} s",
            where=path,
            do="split it or raise limits.max_duration_s",
            kind="too-long",
        )
    return found


def decode_audio(path: str, duration_s: float, limits: LimitConfig) -> np.ndarray:
    """The whole sound track: int16 [n] at 16 kHz mono, sample 0 at the container's time 0 (late starts are padded)."""
    import ffmpeg

    sound = _input(path, limits).audio.filter("aresample", **{"async": 1, "first_pts": 0})
    graph = ffmpeg.output(sound, "pipe:", format="s16le", ac=1, ar=AUDIO_RATE, t=limits.max_duration_s)
    with _child(_command(graph), _deadline(duration_s, limits), limits) as child:
        data = child.read()
    if child.code or not data:
        raise UserError(f"the sound cannot be decoded: {child.complaint}", where=path, kind="decode-failed")
    return np.frombuffer(data, np.int16)


def decode_frames(
    path: str, probe: Probe, side: int, shot_fps: int, shot_file: Path, limits: LimitConfig
) -> Iterator[np.ndarray]:
    """Pictures on the 16 fps grid: uint8 [H, W, 3] RGB, longest side `side`; frame i stands at i / 16 s.

    The same pass of the decoder writes a second, tiny stream for the shot detector into `shot_file`: raw RGB of 48 x 27
    at `shot_fps`. Decoding stops early when the caller stops asking.
    """
    import ffmpeg

    width, height = fitted_size(probe.width, probe.height, side)
    taken = _input(path, limits).video.filter_multi_output("split")
    grid = taken[0].filter("fps", fps=VIDEO_FPS, start_time=0).filter("scale", width, height, flags="area")
    tiny = taken[1].filter("fps", fps=shot_fps, start_time=0).filter("scale", 48, 27, flags="area")
    raw = {"format": "rawvideo", "pix_fmt": "rgb24", "t": limits.max_duration_s}
    graph = ffmpeg.merge_outputs(ffmpeg.output(grid, "pipe:", **raw), ffmpeg.output(tiny, str(shot_file), **raw))
    size = width * height * 3
    frames = 0
    with _child(_command(graph), _deadline(probe.duration_s, limits), limits) as child:
        while len(data := child.read(size)) == size:
            frames += 1
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    if child.code or not frames:
        raise UserError(f"the picture cannot be decoded: {child.complaint}", where=path, kind="decode-failed")


def cut_clip(
    path: str, start_s: float, frames: int, size: tuple[int, int], sound: bool, target: tuple[Path, Path], work: Path,
    cut: CutConfig, limits: LimitConfig,
) -> None:  # fmt: skip
    """Encode `frames` pictures at 16 fps from `start_s`, and exactly as much sound, to `target` (.mp4, .flac).

    Both are written in the folder `work`, their lengths are checked, then they are renamed into place. Without `sound`
    only the picture is written. Raises UserError (cut-failed) when an encode is not as long as asked.
    """
    import ffmpeg

    ahead = min(start_s, SEEK_MARGIN_S)
    source = _input(path, limits, ss=f"{start_s - ahead:.6f}")
    mp4, flac = work / target[0].name, work / target[1].name
    picture = source.video.filter("setpts", f"PTS-{ahead:.6f}/TB").filter("fps", fps=VIDEO_FPS, start_time=0)
    picture = picture.filter("scale", *size, flags="bicubic").filter("setsar", "1").filter("tpad", stop=1, stop_mode="clone")
    outputs = [
        ffmpeg.output(picture, str(mp4), vframes=frames, vcodec="libx264", pix_fmt="yuv420p", crf=cut.crf, preset=cut.preset,
                      movflags="+faststart", threads=limits.decoder_threads, map_metadata=-1)
    ]  # fmt: skip
    if sound:
        samples = samples_for_frames(frames)
        heard = source.audio.filter("aresample", SAMPLE_RATE).filter("atrim", start=f"{ahead:.6f}")
        heard = heard.filter("asetpts", f"PTS-{ahead:.6f}/TB")
        heard = heard.filter("aresample", **{"async": 1, "first_pts": 0}).filter("apad", whole_len=samples)
        # the encoder takes its block size from the first frame, which the first trim may have left with 8 samples
        heard = heard.filter("atrim", end_sample=samples).filter("asetnsamples", n=1024, pad=0)
        outputs.append(ffmpeg.output(heard, str(flac), ac=1, ar=SAMPLE_RATE, acodec="flac", sample_fmt="s16", map_metadata=-1))
    graph = ffmpeg.merge_outputs(*outputs) if sound else outputs[0]
    with _child(_command(graph), _deadline(frames / VIDEO_FPS + ahead, limits), limits) as child:
        child.read()
    if child.code:
        kind = "no-space" if "No space left" in child.complaint else "cut-failed"
        raise UserError(f"the clip cannot be cut: {child.complaint}", where=path, kind=kind)
    _check_lengths(mp4, flac if sound else None, frames, path)
    for part, final in ((mp4, target[0]), *([(flac, target[1])] if sound else [])):
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(part, final)


def fitted_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """Even width and height with the longest side at most `longest`, the aspect kept to the pixel; never enlarged."""
    scale = min(1.0, longest / max(width, height, 1))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _check_lengths(mp4: Path, flac: Path | None, frames: int, path: str) -> None:
    import av
    import soundfile

    with av.open(str(mp4), mode="r") as container:
        found = container.streams.video[0].frames
    if found != frames:
        raise UserError(f"the cut has {found} frames instead of {frames}", where=path, kind="cut-failed")
    if flac is not None and (samples := soundfile.info(str(flac)).frames) != samples_for_frames(frames):
        raise UserError(f"the cut has {samples} samples instead of {samples_for_frames(frames)}", where=path, kind="cut-failed")


def _input(path: str, limits: LimitConfig, **options: Any) -> Any:
    import ffmpeg

    return ffmpeg.input(
        f"file:{path}",
        protocol_whitelist="file,pipe",
        format_whitelist=DEMUXERS,
        max_pixels=limits.max_pixels,
        threads=limits.decoder_threads,
        **options,
    )


def _command(graph: Any) -> list[str]:
    import ffmpeg

    command: list[str] = ffmpeg.compile(graph, cmd=ffmpeg_path(), overwrite_output=True)
    return [command[0], "-hide_banner", "-loglevel", "error", "-nostdin", *command[1:]]


def _deadline(duration_s: float, limits: LimitConfig) -> float:
    return limits.decode_seconds + limits.decode_factor * duration_s


class _Child:
    """A running decoder: what it writes, and once it has ended its exit code and its last words."""

    def __init__(self, command: list[str], log: IO[bytes]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        self.log = log
        self.code = 0
        self.complaint = ""

    def read(self, size: int = -1) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(size)

    def finish(self) -> None:
        """Close the pipe, so that one who still writes for nobody ends; wait; keep code and last words."""
        assert self.process.stdout is not None
        self.process.stdout.close()
        try:
            self.code = self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.code = self.process.wait()
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 4096))
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        # ffmpeg names the cause first and its consequences after it, Python the other way round
        cause = lines[-1 if lines[0].startswith("Traceback") else 0] if lines else f"exit code {self.code}"
        self.complaint = cause[:200]


@contextmanager
def _child(command: list[str], seconds: float, limits: LimitConfig) -> Iterator[_Child]:
    """A bounded child process; leaving the block ends it. Raises UserError (timeout) when its time was up."""
    expired = threading.Event()
    # a file takes the complaints: a pipe that nobody drains would stop a decoder that complains a lot
    with tempfile.TemporaryFile() as log:
        child = _Child(command, log)

        def expire() -> None:
            expired.set()
            child.process.kill()

        memory = int(limits.memory_gb * 2**30)
        with suppress(ProcessLookupError):  # it may have ended already
            resource.prlimit(child.process.pid, resource.RLIMIT_AS, (memory, memory))
        timer = threading.Timer(seconds, expire)
        timer.start()
        try:
            yield child
        finally:
            timer.cancel()
            child.finish()
    if expired.is_set():
        raise UserError(f"decoding took longer than {seconds:.0f} s", do="raise limits.decode_seconds", kind="timeout")
