"""Check an ffmpeg before it works: its version, what it must have, and that it decodes and cuts rightly.

Input: the configuration's limits. Output: a description, or a UserError in one line (no-ffmpeg,
broken-ffmpeg).
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from uniavgen.ingest.config import PACKAGED, CutConfig, LimitConfig
from uniavgen.ingest.io.clip_encoding import ClipEncode, Framing, check_lengths, encode_clips
from uniavgen.ingest.io.ffmpeg import START_TIMEOUT_S, bounded_child, ffmpeg_path, ffmpeg_version
from uniavgen.ingest.io.media import decode_audio, decode_clip_frames, decode_frames
from uniavgen.ingest.io.uris import DEMUXERS
from uniavgen.ingest.records import AUDIO_RATE, Probe
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS

MIN_VERSION = (5, 1)
"""Oldest version that is accepted. The tests of decoding and cutting pass with 5.1.9 (Debian 12)."""

FEATURES = {
    "filters": (
        "apad aresample asetnsamples asetpts asplit atrim bwdif crop format fps pad pan scale "
        "setpts setsar settb split tonemap tpad zscale"
    ),
    "encoders": "flac libx264 pcm_s16le rawvideo",
    "muxers": "flac matroska mp4 mpegts rawvideo s16le",
    "demuxers": "rawvideo s16le",
    "protocols": "file pipe",
}
"""What the package uses, by the option of ffmpeg that lists it."""

SELF_TEST_FPS, SELF_TEST_FRAMES = 10, 15
"""Made video of the self-test: its last half second is one frame, as encoders that drop repeats write it."""

SELF_TEST_SIZE = (64, 48)


HDR = "color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=tv"
"""Tags of the made video."""


@dataclass(frozen=True)
class FfmpegReport:
    """What a check found. `lacks` names missing features; `error` is "" if the self-test passed."""

    path: str
    version: str
    lacks: tuple[str, ...] = ()
    error: str = ""

    @property
    def problem(self) -> str:
        """One line, "" if the program can be used."""
        if is_too_old(self.version):
            return f"version {self.version} is too old, {'.'.join(map(str, MIN_VERSION))} is needed"
        if self.lacks:
            return f"version {self.version} lacks {', '.join(self.lacks)}"
        return self.error


def check_ffmpeg(limits: LimitConfig) -> FfmpegReport:
    """Check the configured ffmpeg by using it. Raises UserError for one that cannot be used."""
    report = examine_ffmpeg(limits)
    if report.problem:
        raise UserError(
            f"ffmpeg cannot be used: {report.problem}",
            where=report.path,
            hint="the pinned one works: --set ingest.limits.ffmpeg=packaged",
            kind="broken-ffmpeg",
        )
    return report


def examine_ffmpeg(limits: LimitConfig) -> FfmpegReport:
    """What the configured ffmpeg is and lacks. Raises UserError if there is none, or it does not start."""
    path, version = ffmpeg_path(limits.ffmpeg), ffmpeg_version(limits.ffmpeg)
    lacks = () if limits.ffmpeg == PACKAGED else missing_features(path)  # the pinned one has all
    if lacks or is_too_old(version):
        return FfmpegReport(path, version, lacks)
    try:
        with tempfile.TemporaryDirectory(prefix="uniavgen-ffmpeg-") as folder:
            self_test(Path(folder), LimitConfig(ffmpeg=limits.ffmpeg))  # the limits of sources may be tight
    except (UserError, OSError) as error:
        reason = error.what if isinstance(error, UserError) else str(error)
        return FfmpegReport(path, version, (), f"{reason} (self-test)")
    return FfmpegReport(path, version)


def is_too_old(version: str) -> bool:
    """Whether a version is below MIN_VERSION. A build without a number (`git-2024-...`) is not."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) < MIN_VERSION


def missing_features(path: str) -> tuple[str, ...]:
    """Names from FEATURES, and containers that are opened, that an ffmpeg does not list."""
    missing = []
    for kind, names in FEATURES.items():
        listing = subprocess.run(
            [path, "-hide_banner", f"-{kind}"], capture_output=True, timeout=START_TIMEOUT_S
        )
        words = set(re.split(r"[\s,]+", listing.stdout.decode("utf-8", "replace")))
        wanted = names.split() + (DEMUXERS.split(",") if kind == "demuxers" else [])
        missing += [f"{kind.removesuffix('s')} {name}" for name in wanted if name not in words]
    return tuple(missing)


def self_test(folder: Path, limits: LimitConfig) -> None:
    """Encode a video, decode it and cut it with the functions of ingest. Raises UserError if anything but the
    right number of frames and samples comes out.
    """
    width, height = SELF_TEST_SIZE
    source, seconds = folder / "source.mkv", SELF_TEST_FRAMES / SELF_TEST_FPS
    _encode(source, folder, limits)
    _check_transport_stream(source, folder, limits)
    plain = Probe(seconds, width, height, SELF_TEST_FPS, "h264", "flac", has_audio=True, audio_stream=1)
    probe = replace(
        plain, interlaced_ratio=1.0, frame_sizes=2, transfer="smpte2084", mono="left", start_s=0.0
    )
    audio = decode_audio(str(source), probe, folder / "audio", limits)
    frames = sum(1 for _ in decode_frames(str(source), probe, width, VIDEO_FPS, folder / "shots.raw", limits))
    clip = decode_clip_frames(str(source), probe, 0.5, 0.5, VIDEO_FPS, width, limits)
    framing = Framing(width, height, 8, 8, width - 16, height - 16, width // 2, height // 2)
    count = math.ceil((seconds - 0.5) * VIDEO_FPS)
    cuts = [
        ClipEncode(start_s, count, framing, folder / f"{start_s}.mp4", folder / f"{start_s}.flac")
        for start_s in (0.0, 0.5)
    ]
    encode_clips(str(source), probe, cuts, CutConfig(), limits)
    for made in cuts:
        check_lengths(made, True, str(source))
    least = (SELF_TEST_FRAMES // 2) * VIDEO_FPS // SELF_TEST_FPS
    if not least <= frames <= seconds * VIDEO_FPS + 1 or len(clip) != VIDEO_FPS // 2:
        raise UserError(f"{frames} frames were decoded of {seconds} s")
    if abs(audio.duration_s - seconds) > 0.1:
        raise UserError(f"{audio.duration_s:.2f} s of audio were decoded of {seconds} s")


def _check_transport_stream(source: Path, folder: Path, limits: LimitConfig) -> None:
    """Raises UserError if a transport stream cannot be read: a static build of 7.0.2 crashes at each."""
    stream, null = folder / "stream.ts", ("-f", "null", "-")
    start = (ffmpeg_path(limits.ffmpeg), "-hide_banner", "-loglevel", "error", "-nostdin", "-y")
    copied = ("-map", "0:v", "-c", "copy")
    for command in ((*start, "-i", source, *copied, stream), (*start, "-i", stream, *copied, *null)):
        with bounded_child([str(word) for word in command], START_TIMEOUT_S, limits) as child:
            child.read()
        child.check(str(stream), "a transport stream cannot be read", "broken-ffmpeg")


def _encode(target: Path, folder: Path, limits: LimitConfig) -> None:
    """A video with two channels of audio that is longer: the last frames are left out as repeats."""
    width, height = SELF_TEST_SIZE
    ramp = np.linspace(0, 255, width * height * 3).astype(np.uint8)
    moving = SELF_TEST_FRAMES // 2
    frames = [np.roll(ramp, 7 * min(index, moving)).tobytes() for index in range(SELF_TEST_FRAMES)]
    sound = np.sin(np.arange(AUDIO_RATE * SELF_TEST_FRAMES // SELF_TEST_FPS) / 8) * 8000
    pictures, waveform = folder / "frames.raw", folder / "sound.raw"
    pictures.write_bytes(b"".join(frames[: moving + 1]))
    waveform.write_bytes(sound.astype("<i2").tobytes())
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(SELF_TEST_FPS)]
    command = [
        *(ffmpeg_path(limits.ffmpeg), "-hide_banner", "-loglevel", "error", "-nostdin", "-y"),
        *(*raw, "-i", str(pictures), "-f", "s16le", "-ar", str(AUDIO_RATE), "-ac", "1", "-i", str(waveform)),
        *("-vf", f"format=yuv420p,setparams={HDR}"),
        *("-c:v", "libx264", "-c:a", "flac", "-ac", "2"),
        str(target),
    ]
    with bounded_child(command, START_TIMEOUT_S, limits) as child:
        child.read()
    child.check(str(target), "a video cannot be encoded", "broken-ffmpeg")
