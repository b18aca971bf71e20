"""Put frames and sound into a video file: any container and codecs, through ffmpeg, one frame in memory at a time.

In: RGB frames, a waveform and how to store them. Out: a file that appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.media import ffmpeg_path
from orchestration.demo.script import SourcePlan
from orchestration.demo.speech import RATE
from shards.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_VIDEO_OPTIONS: dict[str, dict[str, Any]] = {
    "libx264": {"preset": "veryfast", "crf": 21},
    "mpeg4": {"q:v": 4},
    "libvpx": {"deadline": "good", "cpu-used": 5, "b:v": "1500k"},
}
"""Clear pictures in short work, and the same bytes every time (libvpx's realtime mode watches the clock): our choice."""


def write_film(path: Path, plan: SourcePlan, frames: Iterable[np.ndarray], waveform: np.ndarray) -> None:
    """Encode frames uint8 [size, size, 3] and sound float32 [n] at `speech.RATE` as the plan says.

    Raises UserError with ffmpeg's own last line where it fails.
    """
    import ffmpeg
    import soundfile

    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".film-") as folder:
        part = Path(folder) / f"film{path.suffix}"
        picture = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{plan.size}x{plan.size}", r=plan.fps)
        streams, options = [picture], {"vcodec": plan.video, "pix_fmt": "yuv420p", **_VIDEO_OPTIONS[plan.video]}
        if plan.audio:
            sound = Path(folder) / "sound.wav"
            soundfile.write(sound, waveform, RATE, subtype="PCM_16")
            streams.append(ffmpeg.input(str(sound)))
            options |= {"acodec": plan.audio, "ar": plan.rate, "ac": plan.channels}
        options |= {"threads": 1, "fflags": "+bitexact", "flags": "+bitexact", "map_metadata": -1, "loglevel": "error"}
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
                raise UserError(f"ffmpeg could not write: {message[-1] if message else 'no message'}", where=path)
        finally:
            process.kill()
            process.wait()
        os.replace(part, path)
