"""Write frames and audio to a video file through ffmpeg, with one frame in memory at a time."""

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
"""Encoding that any player opens, near lossless. Heuristic."""

SHEET_FRAMES = 6
"""Frames on a contact sheet."""


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    size: tuple[int, int],
    waveform: np.ndarray | None,
    *,
    fps: float = VIDEO_FPS,
    sample_rate: int = SAMPLE_RATE,
    encoding: Mapping[str, Any] = PLAYABLE,
) -> Path:
    """Encode frames uint8 [H, W, 3] of `size` (H, W) and a waveform float32 [n] in -1..1, and return `path`.

    `encoding` holds ffmpeg's output options. The file is written under another name and renamed when
    complete. Raises UserError with ffmpeg's last line if ffmpeg fails.
    """
    import ffmpeg
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".video-") as folder:
        unfinished = Path(folder) / f"video{path.suffix}"
        streams = [ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{size[1]}x{size[0]}", r=fps)]
        if waveform is not None:
            audio = Path(folder) / "audio.wav"
            soundfile.write(audio, waveform, sample_rate, subtype="PCM_16")
            streams.append(ffmpeg.input(str(audio)))
        options = {"pix_fmt": "yuv420p", "loglevel": "error", **encoding}
        process = ffmpeg.output(*streams, str(unfinished), **options).run_async(
            cmd=ffmpeg_path(), pipe_stdin=True, pipe_stderr=True, overwrite_output=True
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # ffmpeg ended: its message is read below
                for frame in frames:
                    process.stdin.write(frame.tobytes())
                process.stdin.close()
            messages = process.stderr.read().decode(errors="replace").strip().splitlines()
            if process.wait():
                last = messages[-1] if messages else "no message"
                raise UserError(
                    f"ffmpeg could not write the video: {last}",
                    where=path,
                    hint="check space and permissions",
                )
        finally:
            process.kill()
            process.wait()
        os.replace(unfinished, path)
    return path


def write_contact_sheet(path: Path, frames: np.ndarray) -> None:
    """Write evenly spaced frames of uint8 [F, H, W, 3], first and last included, side by side as an image."""
    import numpy as np
    from PIL import Image

    chosen = np.linspace(0, len(frames) - 1, min(SHEET_FRAMES, len(frames))).round().astype(int)
    Image.fromarray(np.concatenate(list(frames[chosen]), axis=1)).save(path)
