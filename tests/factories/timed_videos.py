"""Videos that tell their time: brightness shows the second of each frame, noise the second of each sample."""

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import soundfile
from clip_cutting import cut_one

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io import media
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.io.probe_client import probe_video, repair_video
from uniavgen.ingest.records import Probe

LIMITS = LimitConfig()
SECONDS = 18
RATE = 16_000


def run_ffmpeg(*arguments: object) -> None:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-nostdin", "-y", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=120)


def timed_base(folder: Path) -> Path:
    """`folder`/base.mkv: `SECONDS` of video whose gray level is 16 + 12 t, with noise as audio."""
    noise = timed_noise()
    soundfile.write(folder / "base.wav", noise, RATE, subtype="PCM_16")
    luma = f"color=black:s=64x64:r=25:d={SECONDS},format=gray,geq=lum='16+T*12',format=yuv420p"
    codecs = ("-c:v", "libx264", "-qp", "4", "-g", "25", "-preset", "ultrafast", "-c:a", "pcm_s16le")
    path = folder / "base.mkv"
    run_ffmpeg("-f", "lavfi", "-i", luma, "-i", folder / "base.wav", *codecs, path)
    return path


def timed_noise() -> np.ndarray:
    """Noise float [n] at 16 kHz, the same in every call, quiet enough to be encoded well."""
    rng = np.random.default_rng(13)
    low = np.repeat(rng.normal(0, 0.2, SECONDS * RATE // 8 + 1), 8)[: SECONDS * RATE]
    return np.clip(low, -0.9, 0.9)


@dataclass(frozen=True)
class Reading:
    """Second of the base by the first frame of a span and by its audio, and the audio's correlation."""

    video_s: float
    audio_s: float
    fit: float


class Analysed:
    """A file as ingest analyses and cuts it."""

    def __init__(self, path: Path, folder: Path, audio_track: str = "") -> None:
        self.folder = folder
        self.source = probe_video(str(path), LIMITS, audio_track)
        self.path, self.probe = str(path), self.source
        if self.source.repairs:
            target = folder / f"{path.name}.repaired.mkv"
            self.path, self.probe = str(target), repair_video(str(path), self.source, target, LIMITS)
        self.audio = media.decode_audio(self.path, self.probe, folder / f"{path.name}.s16", LIMITS)
        frames = media.decode_frames(self.path, self.probe, 64, 25, None, LIMITS)
        self.frames = np.stack(list(frames))

    def analysis(self, start_s: float, seconds: float = 1.5) -> Reading:
        pcm = self.audio.span(start_s, start_s + seconds)
        return reading(self.frames[round(start_s * 16)], pcm.astype(np.float64) / 32768)

    def cut(self, start_s: float, seconds: float = 1.5) -> Reading:
        clip = cut_one(self.path, self.probe, start_s, round(seconds * 16), self.folder)
        with av.open(str(clip.mp4)) as container:
            first = next(container.decode(video=0)).to_ndarray(format="rgb24")
        pcm, rate = soundfile.read(clip.flac)
        times = np.arange(round(seconds * RATE)) / RATE
        return reading(first, np.interp(times, np.arange(len(pcm)) / rate, pcm))


def reading(frame: np.ndarray, pcm: np.ndarray) -> Reading:
    height, width = frame.shape[:2]
    middle = frame[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8]
    gray = float(np.asarray(middle, float).mean())
    base = timed_noise()
    size = 1 << (len(base) + len(pcm)).bit_length()
    match = np.fft.irfft(np.fft.rfft(base, size) * np.conj(np.fft.rfft(pcm, size)), size)
    best = int(match[: len(base)].argmax())
    stretch = base[best : best + len(pcm)]
    energy = np.sqrt(np.square(stretch).sum() * np.square(pcm).sum()) + 1e-9
    return Reading((gray - 16) / 12, best / RATE, float(match[best] / energy))


def without_stream_facts(probe: Probe) -> Probe:
    """The probe as release 0.3.0 would read it: first streams, no repair, plain mono mix, no tone mapping."""
    return replace(
        probe,
        start_s=None,
        repairs=(),
        mono="mix",
        transfer="",
        frame_sizes=1,
        video_stream=0,
        audio_stream=1,
    )


def two_tracks(base: Path, path: Path, other: str, *dispositions: str) -> Path:
    """The video of `base` with two audio tracks: `other`, a source of lavfi, before its own."""
    inputs = ("-i", base, "-f", "lavfi", "-t", 18, "-i", other)
    streams = ("-map", "0:v", "-map", "1:a", "-map", "0:a")
    run_ffmpeg(*inputs, *streams, "-c:v", "copy", "-c:a", "aac", *dispositions, path)
    return path
