"""What is in a video comes out on its own clock, in pieces of any kind, and what is no video ends as an error."""

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
    probe,
)
from uniavgen.shards.errors import UserError

LIMITS = LimitConfig()


def render(target: Path, *arguments: str) -> Path:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-y", *arguments, str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


def flash_and_beep(target: Path, fps: str = "25", seconds: int = 14, *extra: str) -> Path:
    """Black with a white flash, silence with a beep, both from every whole second for 0.2 s."""
    flash = f"color=black:s=160x120:r={fps}:d={seconds},drawbox=c=white:t=fill:enable='lt(mod(t,1),0.2)'"
    beep = f"aevalsrc='0.5*sin(2*PI*1000*t)*lt(mod(t\\,1)\\,0.2)':s=48000:d={seconds}"
    return render(target, "-f", "lavfi", "-i", flash, "-f", "lavfi", "-i", beep, *extra)


def onsets(level: np.ndarray, rate: float) -> np.ndarray:
    loud = level > level.max() / 2
    return np.flatnonzero(loud & ~np.r_[False, loud[:-1]]) / rate


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (["get_buffer() failed"], "memory"),
        (["[h264] Cannot allocate memory"], "memory"),
        (["[mpeg4] video_get_buffer: image parameters invalid", "[mpeg4] get_buffer() failed"], ""),
    ],
)
def test_a_picture_of_damaged_size_is_not_told_as_want_of_memory(said: list[str], kind: str) -> None:
    words = " ".join(f"'{line}'" for line in said)
    with bounded_child(["/bin/sh", "-c", f"printf '%s\\n' {words} >&2"], 10.0, LIMITS) as child:
        child.read()
    try:
        child.check("film.mp4", "damaged", "damaged")
        found = ""
    except UserError as error:
        found = error.kind
    assert found == kind


def test_frames_stand_on_the_grid_and_the_tiny_stream_comes_along(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "30", 4)
    found = probe(str(film), LIMITS)
    pictures = list(decode_frames(str(film), found, 128, 25, tmp_path / "tiny", LIMITS))
    assert len(pictures) == 64
    assert pictures[0].shape == (96, 128, 3)
    assert onsets(np.array([p.mean() for p in pictures]), 16) == pytest.approx([0, 1, 2, 3])
    assert (tmp_path / "tiny").stat().st_size == 100 * 27 * 48 * 3


def test_a_reader_that_stops_early_leaves_no_decoder_behind(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "30", 4)
    pictures = decode_frames(str(film), probe(str(film), LIMITS), 128, 25, tmp_path / "tiny", LIMITS)
    next(pictures)
    pictures.close()  # type: ignore[attr-defined]


def test_the_tiny_stream_comes_alone_or_with_the_pictures_the_same(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "30", 4)
    found = probe(str(film), LIMITS)
    for _ in decode_frames(str(film), found, 128, 25, tmp_path / "both", LIMITS):
        pass
    decode_shot_frames(str(film), found, 25, tmp_path / "alone", LIMITS)
    assert (tmp_path / "alone").read_bytes() == (tmp_path / "both").read_bytes()
    assert len(list(decode_frames(str(film), found, 128, 25, None, LIMITS))) == 64


def test_sound_ends_at_the_limit_of_a_source(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mkv", "30", 4)
    limits = LimitConfig(max_duration_s=1.5)
    sound = decode_audio(str(film), 4, tmp_path / "sound.raw", limits)
    assert (sound.duration_s, (tmp_path / "sound.raw").stat().st_size) == (1.5, 48_000)
    assert len(list(decode_frames(str(film), probe(str(film), LIMITS), 64, 25, None, limits))) == 24


def test_a_span_of_sound_is_the_same_from_the_file_as_from_the_whole(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mov", "30", 14, "-c:a", "pcm_s16le", "-ar", "16000")
    sound = decode_audio(str(film), 14, tmp_path / "sound.raw", LIMITS)
    for start_s in (0.0, 3.21, 12.5):
        span = decode_audio_span(str(film), start_s, 2.0, 16_000, LIMITS)
        assert np.abs(span.astype(int) - sound.span(start_s, start_s + 2.0)).max() <= 1
    assert [*tmp_path.glob("*.part")] == []


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((1080, 1920), (288, 512)), ((512, 512), (512, 512)), ((101, 51), (100, 52)), ((3000, 1), (512, 2))],
)
def test_sizes_are_even_within_the_budget_and_never_enlarged(
    size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    assert fitted_size(*size, 512) == fitted


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "25", 2)
    (tmp_path / "text.mp4").write_text("not a film at all\n" * 10)
    (tmp_path / "zero.mp4").touch()
    (tmp_path / "half.mp4").write_bytes(film.read_bytes()[: film.stat().st_size // 2])
    render(tmp_path / "sound.mp4", "-i", str(film), "-vn")
    kinds = {}
    for name in ("text", "zero", "half", "sound"):
        with pytest.raises(UserError) as caught:
            probe(str(tmp_path / f"{name}.mp4"), LIMITS)
        kinds[name] = caught.value.kind
        assert "\n" not in str(caught.value)
    assert kinds == {"text": "not-a-video", "zero": "not-a-video", "half": "not-a-video", "sound": "no-video"}


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXTINF:1,\n{film}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {film}\n",
        "http://127.0.0.1:9/x.mp4\n",
    ],
)
def test_a_playlist_opens_no_other_file(tmp_path: Path, content: str) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "25", 2)
    trap = tmp_path / "trap.mp4"
    trap.write_text(content.format(film=film))
    with pytest.raises(UserError) as caught:
        probe(str(trap), LIMITS)
    assert caught.value.kind == "not-a-video"
    with pytest.raises(UserError):
        decode_audio(str(trap), 1, tmp_path / "sound", LIMITS)


def test_limits_are_named_when_they_are_met(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "25", 4)
    for limits, kind in (
        (LimitConfig(max_duration_s=2), "too-long"),
        (LimitConfig(max_pixels=1000), "too-large"),
        (LimitConfig(probe_seconds=0.0005), "timeout"),
    ):
        with pytest.raises(UserError) as caught:
            probe(str(film), limits)
        assert caught.value.kind == kind


@pytest.mark.parametrize("name", ["-i.mp4", "a b'\"c.mp4", "line\nbreak.mp4", "päter:1.mp4", "%03d.mp4"])
def test_odd_names_are_only_names(tmp_path: Path, name: str) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "25", 2).rename(tmp_path / name)
    assert probe(str(film), LIMITS).duration_s == pytest.approx(2, abs=0.1)
    assert decode_audio(str(film), 2, tmp_path / "sound", LIMITS).duration_s == pytest.approx(2, abs=0.1)


def test_without_any_ffmpeg_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import imageio_ffmpeg

    def none_here() -> str:
        raise RuntimeError("No ffmpeg exe could be found")

    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", none_here)
    ffmpeg_path.cache_clear()
    try:
        with pytest.raises(UserError, match="ffmpeg is missing; install ffmpeg"):
            ffmpeg_path()
    finally:
        ffmpeg_path.cache_clear()
