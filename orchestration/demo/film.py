"""How each video of the demo is encoded: many containers and codecs, and the same bytes every time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.demo.script import SourcePlan
from uniavgen.orchestration.demo.speech import RATE
from uniavgen.orchestration.video_file import write_movie

if TYPE_CHECKING:
    import numpy as np

_VIDEO_OPTIONS: dict[str, dict[str, Any]] = {
    "libx264": {"preset": "veryfast", "crf": 21},
    "mpeg4": {"q:v": 4},
    "libvpx": {"deadline": "good", "cpu-used": 5, "b:v": "1500k"},
}
"""Clear pictures in short work, and the same bytes every time (libvpx's realtime mode watches the clock): our choice."""

_REPEATABLE = {"threads": 1, "fflags": "+bitexact", "flags": "+bitexact", "map_metadata": -1}


def write_film(path: Path, plan: SourcePlan, frames: Iterable[np.ndarray], waveform: np.ndarray) -> None:
    """Encode frames uint8 [size, size, 3] and sound float32 [n] at `speech.RATE` as the plan says.

    Raises UserError with ffmpeg's own last line where it fails.
    """
    encoding = {"vcodec": plan.video, **_VIDEO_OPTIONS[plan.video], **_REPEATABLE}
    if plan.audio:
        encoding |= {"acodec": plan.audio, "ar": plan.rate, "ac": plan.channels}
    sound = waveform if plan.audio else None
    write_movie(
        path, frames, (plan.size, plan.size), sound, fps=plan.fps, sample_rate=RATE, encoding=encoding
    )
