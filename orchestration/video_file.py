"""Frames and sound to a video file, through ffmpeg, one frame in memory at a time.

In: RGB frames, a waveform and how to store them. Out: a file that appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS

if TYPE_CHECKING:
    import numpy as np

PLAYABLE = {"vcodec": "libx264", "crf": 16, "acodec": "aac", "movflags": "+faststart"}
"""Encoding that any player opens, close to the frames that were given (our choice)."""


def write_movie(
    path: Path,
    frames: Iterable[np.ndarray],
    size: tuple[int, int],
    waveform: np.ndarray | None,
    *,
    fps: float = VIDEO_FPS,
    sample_rate: int = SAMPLE_RATE,
    encoding: Mapping[str, Any] = PLAYABLE,
) -> Path:
    """Encode frames uint8 [H, W, 3] of `size` (H, W) and sound float32 [n] in -1..1; `encoding` are ffmpeg's output options.

    Raises UserError with ffmpeg's own last line where it fails.
    """
    import ffmpeg
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".movie-") as folder:
        part = Path(folder) / f"movie{path.suffix}"
        streams = [ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{size[1]}x{size[0]}", r=fps)]
        if waveform is not None:
            sound = Path(folder) / "sound.wav"
            soundfile.write(sound, waveform, sample_rate, subtype="PCM_16")
            streams.append(ffmpeg.input(str(sound)))
        options = {"pix_fmt": "yuv420p", "loglevel": "error", **encoding}
        process = ffmpeg.output(*streams, str(part), **options).run_async(
            cmd=ffmpeg_path(), pipe_stdin=True, pipe_stderr=True, overwrite_output=True
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg has stopped: its message follows
                for frame in frames:
                    process.stdin.write(frame.tobytes())
                process.stdin.close()
            message = process.stderr.read().decode(errors="replace").strip().splitlines()
            if process.wait():
                last = message[-1] if message else "no message"
                raise UserError(f"ffmpeg could not write: {last}", where=path, hint="check space and rights")
        finally:
            process.kill()
            process.wait()
        os.replace(part, path)
    return path
