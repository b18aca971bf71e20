"""Decoding audio and frames on the container's clock, limits, and errors for files that are not videos."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io.ffmpeg import bounded_child, ffmpeg_path
from uniavgen.ingest.io.media import (
    decode_audio,
    decode_audio_span,
    decode_frames,
    decode_shot_frames,
    fitted_size,
)
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.shards.errors import UserError

LIMITS = LimitConfig()


def render(target: Path, *arguments: str) -> Path:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-y", *arguments, str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


def flash_and_beep(target: Path, fps: str = "25", seconds: int = 14, *extra: str) -> Path:
    """Black with a white flash and silence with a beep, both for 0.2 s from every whole second."""
    flash = f"color=black:s=160x120:r={fps}:d={seconds},drawbox=c=white:t=fill:enable='lt(mod(t,1),0.2)'"
    beep = f"aevalsrc='0.5*sin(2*PI*1000*t)*lt(mod(t\\,1)\\,0.2)':s=48000:d={seconds}"
    return render(target, "-f", "lavfi", "-i", flash, "-f", "lavfi", "-i", beep, *extra)


def onsets(level: np.ndarray, rate: float) -> np.ndarray:
    loud = level > level.max() / 2
    return np.flatnonzero(loud & ~np.r_[False, loud[:-1]]) / rate


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        (["get_buffer() failed"], "memory"),
        (["[h264] Cannot allocate memory"], "memory"),
        (["[mpeg4] video_get_buffer: image parameters invalid", "[mpeg4] get_buffer() failed"], ""),
    ],
)
def test_damaged_frame_size_is_not_reported_as_memory_limit(messages: list[str], kind: str) -> None:
    words = " ".join(f"'{line}'" for line in messages)
    with bounded_child(["/bin/sh", "-c", f"printf '%s\\n' {words} >&2"], 10.0, LIMITS) as child:
        child.read()
    try:
        child.check("video.mp4", "damaged", "damaged")
        raised = ""
    except UserError as error:
        raised = error.kind
    assert raised == kind


def test_frames_are_on_the_16_fps_grid_with_shot_frames_beside(tmp_path: Path) -> None:
    video = flash_and_beep(tmp_path / "a.mp4", "30", 4)
    probed = probe_video(str(video), LIMITS)
    frames = list(decode_frames(str(video), probed, 128, 25, tmp_path / "shots", LIMITS))
    assert len(frames) == 64
    assert frames[0].shape == (96, 128, 3)
    assert onsets(np.array([p.mean() for p in frames]), 16) == pytest.approx([0, 1, 2, 3])
    assert (tmp_path / "shots").stat().st_size == 100 * 27 * 48 * 3


def test_decoder_ends_when_the_caller_stops_early(tmp_path: Path) -> None:
    video = flash_and_beep(tmp_path / "a.mp4", "30", 4)
    frames = decode_frames(str(video), probe_video(str(video), LIMITS), 128, 25, tmp_path / "shots", LIMITS)
    next(frames)
    frames.close()  # type: ignore[attr-defined]


def test_shot_frames_alone_equal_those_of_the_shared_pass(tmp_path: Path) -> None:
    video = flash_and_beep(tmp_path / "a.mp4", "30", 4)
    probed = probe_video(str(video), LIMITS)
    for _ in decode_frames(str(video), probed, 128, 25, tmp_path / "both", LIMITS):
        pass
    decode_shot_frames(str(video), probed, 25, tmp_path / "alone", LIMITS)
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "both").read_bytes()
    assert len(list(decode_frames(str(video), probed, 128, 25, None, LIMITS))) == 64


def test_decoding_ends_at_max_duration(tmp_path: Path) -> None:
    video = flash_and_beep(tmp_path / "a.mkv", "30", 4)
    limits = LimitConfig(max_duration_s=1.5)
    audio = decode_audio(str(video), probe_video(str(video), LIMITS), tmp_path / "audio.raw", limits)
    assert (audio.duration_s, (tmp_path / "audio.raw").stat().st_size) == (1.5, 48_000)
    assert len(list(decode_frames(str(video), probe_video(str(video), LIMITS), 64, 25, None, limits))) == 24


def test_audio_span_equals_span_of_whole_track(tmp_path: Path) -> None:
    video = flash_and_beep(tmp_path / "a.mov", "30", 14, "-c:a", "pcm_s16le", "-ar", "16000")
    probed = probe_video(str(video), LIMITS)
    audio = decode_audio(str(video), probed, tmp_path / "audio.raw", LIMITS)
    for start_s in (0.0, 3.21, 12.5):
        span = decode_audio_span(str(video), probed, start_s, 2.0, 16_000, LIMITS)
        assert np.abs(span.astype(int) - audio.span(start_s, start_s + 2.0)).max() <= 1
    assert [*tmp_path.glob("*.part")] == []


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((1080, 1920), (288, 512)), ((512, 512), (512, 512)), ((101, 51), (100, 52)), ((3000, 1), (512, 2))],
)
def test_fitted_size_is_even_within_limit_and_not_enlarged(
    size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert fitted_size(*size, 512) == fitted


def test_files_without_video_are_errors(tmp_path: Path) -> None:
    video = flash_and_beep(tmp_path / "a.mp4", "25", 2)
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 10)
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "half.mp4").write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    render(tmp_path / "audio.mp4", "-i", str(video), "-vn")
    kinds = {}
    for name in ("text", "zero", "half", "audio"):
        with pytest.raises(UserError) as caught:
            probe_video(str(tmp_path / f"{name}.mp4"), LIMITS)
        kinds[name] = caught.value.kind
        assert "\n" not in str(caught.value)
    assert kinds == {"text": "not-a-video", "zero": "not-a-video", "half": "not-a-video", "audio": "no-video"}


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXTINF:1,\n{video}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {video}\n",
        "http://127.0.0.1:9/x.mp4\n",
    ],
)
def test_playlist_opens_no_other_file(tmp_path: Path, content: str) -> None:
    video = flash_and_beep(tmp_path / "a.mp4", "25", 2)
    trap = tmp_path / "trap.mp4"
    trap.write_text(content.format(video=video))
    with pytest.raises(UserError) as caught:
        probe_video(str(trap), LIMITS)
    assert caught.value.kind == "not-a-video"
    with pytest.raises(UserError):
        decode_audio(str(trap), probe_video(str(video), LIMITS), tmp_path / "audio", LIMITS)


def test_exceeded_limit_is_named(tmp_path: Path) -> None:
    video = flash_and_beep(tmp_path / "a.mp4", "25", 4)
    for limits, kind in (
        (LimitConfig(max_duration_s=2), "too-long"),
        (LimitConfig(max_pixels=1000), "too-large"),
        (LimitConfig(probe_seconds=0.0005), "timeout"),
    ):
        with pytest.raises(UserError) as caught:
            probe_video(str(video), limits)
        assert caught.value.kind == kind


@pytest.mark.parametrize("name", ["-i.mp4", "a b'\"c.mp4", "line\nbreak.mp4", "päter:1.mp4", "%03d.mp4"])
def test_odd_names_are_decoded(tmp_path: Path, name: str) -> None:
    video = flash_and_beep(tmp_path / "a.mp4", "25", 2).rename(tmp_path / name)
    probed = probe_video(str(video), LIMITS)
    audio = decode_audio(str(video), probed, tmp_path / "audio", LIMITS)
    assert (probed.duration_s, audio.duration_s) == pytest.approx((2, 2), abs=0.1)
