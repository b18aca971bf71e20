"""Frames and sound to an .mp4 that any player opens."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.media import ffmpeg_path
from shards.clock import SAMPLE_RATE, VIDEO_FPS
from shards.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def write_movie(
    path: Path, frames: np.ndarray, waveform: np.ndarray, *, fps: float = VIDEO_FPS, sample_rate: int = SAMPLE_RATE
) -> Path:
    """Encode uint8 frames [F, H, W, 3] and sound float32 [n] in -1..1 as H.264 + AAC; the file appears by rename.

    Raises UserError where ffmpeg refuses.
    """
    import ffmpeg
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".movie-") as folder:
        wav, part = Path(folder) / "sound.wav", Path(folder) / "movie.mp4"
        soundfile.write(wav, waveform, sample_rate)
        picture = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=fps)
        movie = ffmpeg.output(
            picture,
            ffmpeg.input(str(wav)),
            str(part),
            vcodec="libx264",
            crf=16,
            pix_fmt="yuv420p",
            acodec="aac",
            movflags="+faststart",
        )
        try:
            movie.run(cmd=ffmpeg_path(), input=frames.tobytes(), quiet=True)
        except ffmpeg.Error as error:
            lines = error.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
            raise UserError(f"ffmpeg cannot write the movie: {lines[-1]}", where=path, do="check space and rights") from error
        os.replace(part, path)
    return path
