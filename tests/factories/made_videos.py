"""Make short videos with a real face and real speech from data of installed packages."""

import importlib.util
import subprocess
from pathlib import Path

from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.shards.weights import resolve


def sample_speech() -> Path:
    """pyannote's sample: 30 s of two speakers. Found without importing the package."""
    package = importlib.util.find_spec("pyannote.audio")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "sample" / "sample.wav"


def speaking_face(target: Path, start_s: float = 7.0, seconds: float = 3.0) -> Path:
    """Write a still portrait with `seconds` of the speech from `start_s`."""
    face = str(resolve("astronaut") / "astronaut.png")
    inputs = [
        "-loop",
        "1",
        "-r",
        "25",
        "-i",
        face,
        "-ss",
        str(start_s),
        "-t",
        str(seconds),
        "-i",
        str(sample_speech()),
        "-shortest",
    ]
    encoding = ["-pix_fmt", "yuv420p", "-preset", "ultrafast"]
    subprocess.run(
        [ffmpeg_path(), "-loglevel", "error", *inputs, *encoding, str(target)], check=True, timeout=60
    )
    return target
