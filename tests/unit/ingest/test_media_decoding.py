"""ffmpeg on its lead: clocks agree to 10 ms after a cut, sizes and rotation are right, hostile files end as errors."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from ingest.config import CutConfig, LimitConfig
from ingest.media import cut_clip, decode_audio, decode_frames, ffmpeg_path, fitted_size, probe
from shards.errors import UserError
from shards.sample import decode_video

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
    ("name", "fps", "delay_s", "extra"),
    [
        ("film.mp4", "25", 0.0, ("-g", "250")),
        ("film.mkv", "30000/1001", 0.0, ("-c:a", "libmp3lame")),
        ("film.avi", "24", 0.0, ("-c:v", "mjpeg", "-c:a", "pcm_s16le")),
        # a program stream says neither its sound's encoder delay nor, to the frame, when its picture starts
        ("film.mpg", "25", 481 / 48_000, ("-c:v", "mpeg1video", "-c:a", "mp2")),
        ("film.ts", "50", 0.0, ("-c:v", "mpeg2video", "-c:a", "ac3", "-ac", "6")),
        ("film.webm", "16", 0.0, ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus")),
    ],
)
def test_picture_and_sound_stay_together_through_a_cut(
    tmp_path: Path, name: str, fps: str, delay_s: float, extra: tuple[str, ...]
) -> None:
    film = flash_and_beep(tmp_path / name, fps, 14, *extra)
    # flashes start on whole seconds, so with a start on the 16 fps grid they start on a frame
    for start in (0.0, 2.5, 11.375):
        mp4, flac = tmp_path / "cut" / "c.mp4", tmp_path / "cut" / "c.flac"
        cut_clip(str(film), start, 40, (160, 120), True, (mp4, flac), tmp_path, CutConfig(), LIMITS)
        sound, rate = soundfile.read(flac)
        pictures = decode_video(mp4.read_bytes())
        assert (rate, len(sound), len(pictures)) == (24_000, 60_000, 40)
        seen = onsets(pictures.mean(axis=(1, 2, 3)), 16)
        block = 24
        heard = onsets(np.abs(sound[: len(sound) // block * block]).reshape(-1, block).max(axis=1), rate / block)
        # one at the very start has no edge to be seen or heard
        expected = np.arange(np.floor(start) + 1, start + 2.45) - start
        # a flash is seen at the next frame of the source, then at the nearest of 16 a second
        assert seen[-len(expected) :] == pytest.approx(expected, abs=(1.0 if delay_s else 0.5) / 16 + 1e-3)
        assert heard[-len(expected) :] == pytest.approx(expected + delay_s, abs=0.01)


def test_sound_that_starts_late_is_heard_late(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mp4")
    late = render(
        tmp_path / "late.mkv", "-i", str(film), "-itsoffset", "0.2", "-i", str(film), "-map", "0:v", "-map", "1:a", "-c", "copy"
    )
    pcm = decode_audio(str(late), 14, LIMITS)
    heard = onsets(np.abs(pcm[: len(pcm) // 16 * 16].astype(int)).reshape(-1, 16).max(axis=1), 1000)
    assert heard[:3] == pytest.approx([0.2, 1.2, 2.2], abs=0.01)
    cut_clip(
        str(late), 2.0, 32, (160, 120), True, (tmp_path / "o.mp4", tmp_path / "o.flac"), tmp_path / "", CutConfig(), LIMITS
    )
    sound, _ = soundfile.read(tmp_path / "o.flac")
    assert onsets(np.abs(sound[:47976]).reshape(-1, 24).max(axis=1), 1000)[-2:] == pytest.approx([0.2, 1.2], abs=0.01)


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


def test_rotation_and_pixel_shape_are_applied(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "25", 2)
    turned = render(tmp_path / "turned.mp4", "-display_rotation", "90", "-i", str(film), "-c", "copy")
    wide = render(tmp_path / "wide.mp4", "-i", str(film), "-vf", "setsar=2/1")
    assert (probe(str(turned), LIMITS).width, probe(str(turned), LIMITS).height) == (120, 160)
    assert (probe(str(wide), LIMITS).width, probe(str(wide), LIMITS).height) == (320, 120)
    assert next(iter(decode_frames(str(turned), probe(str(turned), LIMITS), 80, 25, tmp_path / "t", LIMITS))).shape == (
        80,
        60,
        3,
    )


@pytest.mark.parametrize(
    ("size", "fitted"), [((1080, 1920), (288, 512)), ((512, 512), (512, 512)), ((101, 51), (100, 52)), ((3000, 1), (512, 2))]
)
def test_sizes_are_even_within_the_budget_and_never_enlarged(size: tuple[int, int], fitted: tuple[int, int]) -> None:
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
    ["#EXTM3U\n#EXTINF:1,\n{film}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile {film}\n", "http://127.0.0.1:9/x.mp4\n"],
)
def test_a_playlist_opens_no_other_file(tmp_path: Path, content: str) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "25", 2)
    trap = tmp_path / "trap.mp4"
    trap.write_text(content.format(film=film))
    with pytest.raises(UserError) as caught:
        probe(str(trap), LIMITS)
    assert caught.value.kind == "not-a-video"
    with pytest.raises(UserError):
        decode_audio(str(trap), 1, LIMITS)


def test_limits_are_named_when_they_are_met(tmp_path: Path) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "25", 4)
    for limits, kind in (
        (LimitConfig(max_duration_s=2), "too-long"),
        (LimitConfig(max_pixels=1000), "too-large"),
        (LimitConfig(probe_seconds=0.01), "timeout"),
    ):
        with pytest.raises(UserError) as caught:
            probe(str(film), limits)
        assert caught.value.kind == kind


@pytest.mark.parametrize("name", ["-i.mp4", "a b'\"c.mp4", "line\nbreak.mp4", "päter:1.mp4", "%03d.mp4"])
def test_odd_names_are_only_names(tmp_path: Path, name: str) -> None:
    film = flash_and_beep(tmp_path / "a.mp4", "25", 2).rename(tmp_path / name)
    assert probe(str(film), LIMITS).duration_s == pytest.approx(2, abs=0.1)
    assert len(decode_audio(str(film), 2, LIMITS)) == pytest.approx(32_000, abs=1600)


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
