"""Step `cut`: video and audio of a clip stay together for any input, framing, face tracks.

Reference: a video of black frames with white flashes and of silence with beeps at known times. A source frame
of time p must be shown at frame round(16 p) of the 16 fps grid, and audio must be heard at its time.
"""

import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from clip_cutting import cut_one
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.ingest.config import CutConfig, LimitConfig
from uniavgen.ingest.io.clip_encoding import Framing
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.io.media import decode_audio, decode_audio_span, decode_clip_frames, decode_frames
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.measures.cut import choose_framing, size_within
from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import decode_video

LIMITS = LimitConfig()
PERIOD_S, LIT_S = 1.3, 0.25
"""Period of flashes and beeps, no multiple of a frame at any rate, and length of a flash."""


@dataclass(frozen=True)
class SourceVideo:
    """A test video: `times` [N] of its frames in seconds from the container start, `lit` [N] whether each is
    white, `beeps` start times."""

    path: Path
    times: np.ndarray
    lit: np.ndarray
    beeps: np.ndarray

    def moved(
        self, path: Path, picture_s: float = 0.0, sound_s: float = 0.0, kept: np.ndarray | None = None
    ) -> "SourceVideo":
        """The same video in another file, with its streams shifted in time or only the `kept` frames."""
        kept = np.ones(len(self.times), bool) if kept is None else kept
        return SourceVideo(path, self.times[kept] + picture_s, self.lit[kept], self.beeps + sound_s)

    def slots(self, start_s: float, frames: int, jitter_s: float) -> np.ndarray:
        """Naive reference: which frames of the clip are white, if every source time is `jitter_s` off."""
        slot = np.floor((self.times + jitter_s - start_s) * 16 + 0.5)
        return np.array([self.lit[max(0, np.searchsorted(slot, k, side="right") - 1)] for k in range(frames)])


def render(target: Path, *arguments: str) -> Path:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-y", *arguments, str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


def flash_and_beep(
    target: Path, fps: str = "25", seconds: float = 9, *extra: str, moving: bool = False
) -> SourceVideo:
    """Black with a white flash, silence with a beep, from every multiple of the period."""
    lit = f"lt(mod(t+1e-6,{PERIOD_S}),{LIT_S})"
    flash = f"color=black:s=96x64:r={fps}:d={seconds},drawbox=c=white:t=fill:enable='{lit}'"
    if moving:  # a grey bar that runs across
        flash += f"[a];color=gray:s=12x64:r={fps}:d={seconds}[b];[a][b]overlay=x='mod(t*150,84)'"
    beep = "aevalsrc='0.5*sin(2*PI*1000*t)*{}':s=48000:d={}".format(lit.replace(",", "\\,"), seconds)
    render(target, "-f", "lavfi", "-i", flash, "-f", "lavfi", "-i", beep, *(extra or ("-g", "100")))
    times = np.arange(round(seconds * Fraction(fps))) / float(Fraction(fps))
    lit_frames = np.mod(times + 1e-6, PERIOD_S) < LIT_S
    source_video = SourceVideo(target, times, lit_frames, np.arange(0, seconds, PERIOD_S))
    # a container may start with the audio encoder's priming samples: both streams are later by their length
    late = first_picture(target)
    return source_video.moved(target, late, late)


def first_picture(path: Path) -> float:
    """Seconds from the container's start to its first picture, read from the packets alone."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        packets = [packet for packet in container.demux(video) if packet.size]
        first = min(
            packet.dts if packet.pts is None else packet.pts for packet in packets
        )  # an AVI has no pts
        return float(first * video.time_base) - (container.start_time or 0) / 1e6


def beeps_heard(sound: np.ndarray, rate: int) -> np.ndarray:
    """Start times of beeps: the first sample above 0.4 of the peak after 0.1 s of near silence."""
    loud = np.flatnonzero(np.abs(sound) > 0.4 * np.abs(sound).max())
    return loud[np.diff(loud, prepend=-rate) > 0.1 * rate] / rate


def onsets(lit: np.ndarray) -> np.ndarray:
    return np.flatnonzero(lit[1:] & ~lit[:-1]) + 1


def cut(
    source_video: Path, start_s: float, frames: int, folder: Path, config: CutConfig | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Frames and audio of a cut clip, read from its files."""
    found = probe_video(str(source_video), LIMITS)
    clip = cut_one(
        str(source_video), found, start_s, frames, folder / "out", config or CutConfig(pixels=96 * 64)
    )
    sound, rate = soundfile.read(clip.flac)
    pictures = decode_video(clip.mp4.read_bytes())
    assert (rate, len(sound), len(pictures)) == (24_000, frames * 1500, frames)
    return pictures, sound


def check_together(
    source_video: SourceVideo, starts: list[float], folder: Path, frames: int = 80, late_s: float = 0.0
) -> None:
    """Assert that every flash is on its frame, and every beep within 2 ms of its time plus `late_s`."""
    for start_s in starts:
        pictures, sound = cut(source_video.path, start_s, frames, folder)
        seen = pictures.mean(axis=(1, 2, 3)) > 128
        # container times are rounded to milliseconds: a frame near the middle of two slots may take either
        early, late = (source_video.slots(start_s, frames, jitter) for jitter in (-0.0015, 0.0015))
        sure = early == late
        assert sure.mean() > 0.9
        assert early.any()
        assert not early.all()
        np.testing.assert_array_equal(seen[sure], early[sure], f"cut at {start_s}")
        expected = source_video.beeps - start_s
        heard = beeps_heard(sound, 24_000) - late_s
        inside = (0.15, frames / 16 - 0.05)  # a beep that starts at an edge has no onset
        expected, heard = (times[(times > inside[0]) & (times < inside[1])] for times in (expected, heard))
        assert heard == pytest.approx(expected, abs=0.002), start_s


RATES = {
    "24000/1001.mkv": ("-c:a", "libmp3lame"),
    "30000/1001.mov": ("-c:a", "aac"),
    "120.mp4": ("-g", "240"),
    "24.avi": ("-c:v", "mjpeg", "-c:a", "pcm_s16le"),
    "50.ts": ("-c:v", "mpeg2video", "-c:a", "ac3", "-ac", "6"),
    "16.webm": ("-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus"),
    "25.mxf": ("-c:v", "mpeg2video", "-c:a", "pcm_s16le"),
    "30.flv": ("-c:v", "flv", "-c:a", "libmp3lame", "-ar", "44100"),
    "15.asf": ("-c:v", "wmv2", "-c:a", "wmav2"),
    "10.ogv": ("-c:v", "libtheora", "-c:a", "libvorbis"),
    # its encoder drops repeated frames, also the last ones
    "10/1.ogv": ("-g", "100", "-c:v", "libtheora", "-c:a", "libvorbis"),
    # ten bits a sample, marked as high dynamic range
    "25.mkv": (
        "-pix_fmt",
        "yuv420p10le",
        "-color_primaries",
        "bt2020",
        "-color_trc",
        "smpte2084",
        "-colorspace",
        "bt2020nc",
    ),
}


@pytest.mark.parametrize("case", RATES)
def test_video_and_audio_stay_in_sync_for_every_rate_and_container(tmp_path: Path, case: str) -> None:
    fps, _, ending = case.partition(".")
    source_video = flash_and_beep(tmp_path / f"source_video.{ending}", fps, 9, *RATES[case])
    check_together(source_video, [0.0, 3.5625], tmp_path)


def test_cut_times_are_not_rounded_to_container_ticks(tmp_path: Path) -> None:
    source_video = flash_and_beep(
        tmp_path / "source_video.avi", "30000/1001", 24, "-c:v", "mjpeg", "-c:a", "pcm_s16le"
    )
    check_together(source_video, [12.0625, 15.4375, 18.1875], tmp_path)


def test_program_stream_is_cut_as_exactly_as_its_timestamps(tmp_path: Path) -> None:
    # its muxer sometimes gives two frames the same time, so a flash may be one source frame off
    source_video = flash_and_beep(tmp_path / "source_video.mpg", "25", 9, "-c:v", "mpeg1video", "-c:a", "mp2")
    for start_s in (0.0, 3.5625):
        pictures, sound = cut(source_video.path, start_s, 80, tmp_path)
        seen, expected = (
            onsets(pictures.mean(axis=(1, 2, 3)) > 128),
            onsets(source_video.slots(start_s, 80, 0.0)),
        )
        assert seen == pytest.approx(expected, abs=1)
        heard = [at for at in beeps_heard(sound, 24_000) + start_s if at - start_s > 0.15]
        assert len(heard) >= 3
        assert [np.abs(source_video.beeps - at).min() for at in heard] == pytest.approx(
            [0.0] * len(heard), abs=0.002
        )


@pytest.fixture(scope="module")
def source_video(tmp_path_factory: pytest.TempPathFactory) -> SourceVideo:
    return flash_and_beep(
        tmp_path_factory.mktemp("source_video") / "source_video.mkv", "25", 9, "-g", "400", "-c:a", "flac"
    )


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
@pytest.mark.parametrize("delay_s", [0.2, -0.3])
def test_audio_offset_of_source_is_kept(
    tmp_path: Path, source_video: SourceVideo, ending: str, delay_s: float
) -> None:
    shifted = tmp_path / f"shifted.{ending}"
    offset = ("-itsoffset", f"{abs(delay_s)}", "-i", str(source_video.path))
    inputs = (
        ("-i", str(source_video.path), *offset) if delay_s > 0 else (*offset, "-i", str(source_video.path))
    )
    render(shifted, *inputs, "-map", "0:v", "-map", "1:a", "-c", "copy")
    picture_s = max(0.0, -delay_s)
    late = source_video.moved(shifted, picture_s, picture_s + delay_s)
    check_together(late, [0.0, 2.5], tmp_path)
    sound = decode_audio(str(shifted), probe_video(str(shifted), LIMITS), tmp_path / "sound.raw", LIMITS)
    heard = beeps_heard(sound.span(0, sound.duration_s), 16_000)
    assert heard[-4:] == pytest.approx(late.beeps[-4:], abs=0.002)


def test_frames_hidden_by_edit_list_are_not_cut(tmp_path: Path, source_video: SourceVideo) -> None:
    # a copy that starts between two key frames: the file holds the earlier frames and an edit list hides them
    whole = render(tmp_path / "whole.mp4", "-i", str(source_video.path), "-c:v", "copy", "-c:a", "aac")
    edited = render(tmp_path / "edited.mp4", "-ss", "2", "-i", str(whole), "-c", "copy")
    check_together(source_video.moved(edited, -2.0, -2.0), [0.0, 1.875], tmp_path)


@pytest.mark.parametrize("ending", ["mkv", "ts", "mp4"])
def test_container_start_time_is_subtracted(tmp_path: Path, source_video: SourceVideo, ending: str) -> None:
    sound = ("-c:a", "flac") if ending != "ts" else ("-c:a", "ac3")
    moved = render(
        tmp_path / f"moved.{ending}",
        "-i",
        str(source_video.path),
        "-c:v",
        "copy",
        *sound,
        "-output_ts_offset",
        "7.3",
    )
    late = first_picture(moved)
    check_together(source_video.moved(moved, late, late), [0.0, 2.5], tmp_path)


def test_variable_frame_rate_becomes_constant(tmp_path: Path, source_video: SourceVideo) -> None:
    kept = np.arange(len(source_video.times)) ** 2 % 7 < 3
    vary = ("-vf", "select='lt(mod(n*n,7),3)'", "-fps_mode", "vfr", "-c:a", "copy")
    varied = render(tmp_path / "varied.mkv", "-i", str(source_video.path), *vary)
    check_together(source_video.moved(varied, kept=kept), [0.0, 2.5], tmp_path)


@pytest.mark.parametrize("top_first", [True, False])
def test_interlaced_source_is_detected_and_deinterlaced(tmp_path: Path, top_first: bool) -> None:
    order = "interleave_top" if top_first else "interleave_bottom"
    weave = (
        "-vf",
        f"tinterlace={order}",
        "-c:v",
        "mpeg2video",
        "-q:v",
        "2",
        "-g",
        "1",
        "-c:a",
        "mp2",
        "-ar",
        "48000",
    )
    # the flags of the coded frames do not mark interlacing: it must be detected in the frames
    fields = flash_and_beep(tmp_path / "fields.mkv", "50", 9, *weave, moving=True)
    found = probe_video(str(fields.path), LIMITS)
    assert found.interlaced_ratio > 0.8
    assert found.top_field_first == top_first
    plain = flash_and_beep(tmp_path / "plain.mkv", "25", 4, "-c:v", "mpeg2video", "-q:v", "2", moving=True)
    assert probe_video(str(plain.path), LIMITS).interlaced_ratio == 0.0
    check_together(
        fields.moved(fields.path, kept=np.arange(len(fields.times)) % 2 == 0), [0.0, 2.5], tmp_path
    )
    # without comb artefacts, neighbouring rows differ about as much as rows two apart
    still = decode_clip_frames(str(fields.path), found, 1.0, 2.0, 16, 96, LIMITS).astype(float).mean(axis=-1)
    assert np.abs(np.diff(still, axis=1)).mean() < 1.2 * np.abs(still[:, 2:] - still[:, :-2]).mean()


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small video of 61 minutes: a flash and a beep at every whole second."""
    folder, seconds = tmp_path_factory.mktemp("hour"), 3660
    lit = np.mod(np.arange(seconds * 10) / 10 + 1e-6, 1.0) < LIT_S
    np.repeat((lit * 255).astype(np.uint8), 48 * 32).tofile(folder / "picture.raw")
    at = np.arange(16_000) / 16_000
    np.tile((16_000 * np.sin(2 * np.pi * 1000 * at) * (at < LIT_S)).astype(np.int16), seconds).tofile(
        folder / "sound.raw"
    )
    picture = (
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gray",
        "-s",
        "48x32",
        "-r",
        "10",
        "-i",
        str(folder / "picture.raw"),
    )
    sound = ("-f", "s16le", "-ar", "16000", "-ac", "1", "-i", str(folder / "sound.raw"))
    coded = ("-pix_fmt", "yuv420p", "-g", "250")
    source_video, other = (
        folder / "hour.mp4",
        folder / "hour.avi",
    )  # an AVI has no timestamps, so it is encoded, not copied
    loose = ("-c:v", "mpeg4", "-c:a", "pcm_mulaw", str(other))
    packed = ("-c:v", "libx264", "-preset", "ultrafast", "-c:a", "mp2", "-b:a", "32k")
    render(source_video, *picture, *sound, *coded, *loose, *coded, *packed)
    (folder / "picture.raw").unlink()
    (folder / "sound.raw").unlink()
    return source_video


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts", "avi"])
def test_video_and_audio_stay_in_sync_after_an_hour(tmp_path: Path, hour: Path, ending: str) -> None:
    path = hour.with_name(f"hour.{ending}")
    if not path.exists():
        render(path, "-i", str(hour), "-c", "copy")
    times = np.arange(36_600) / 10
    late = first_picture(path)
    source_video = SourceVideo(
        path, times + late, np.mod(times + 1e-6, 1.0) < LIT_S, np.arange(3660.0) + late
    )
    check_together(source_video, [0.0, 1800.0625, 3600.5, 3654.0], tmp_path)
    heard = beeps_heard(
        decode_audio_span(str(path), probe_video(str(path), LIMITS), 3600.5, 4.0, 16_000, LIMITS), 16_000
    )
    assert heard == pytest.approx(np.arange(4) + 0.5 + late, abs=0.002)


def corner_source_video(target: Path, size: str, *extra: str) -> Path:
    """A black video whose upper left quarter is white."""
    return render(
        target,
        "-f",
        "lavfi",
        "-i",
        f"color=black:s={size}:r=16:d=1,drawbox=w=iw/2:h=ih/2:c=white:t=fill",
        *extra,
    )


@pytest.mark.parametrize(
    ("turn", "corner"), [("90", "lower left"), ("180", "lower right"), ("-90", "upper right")]
)
def test_rotation_is_applied(tmp_path: Path, turn: str, corner: str) -> None:
    source_video = corner_source_video(tmp_path / "a.mp4", "160x120")
    turned = render(tmp_path / "turned.mp4", "-display_rotation", turn, "-i", str(source_video), "-c", "copy")
    found = probe_video(str(turned), LIMITS)
    upright = turn == "180"
    assert (found.width, found.height) == ((160, 120) if upright else (120, 160))
    picture = cut_picture(turned, tmp_path, CutConfig())
    assert picture.shape == (found.height, found.width)
    assert white_corner(picture) == corner
    small = next(iter(decode_frames(str(turned), found, 80, 25, None, LIMITS)))
    assert small.shape == ((60, 80, 3) if upright else (80, 60, 3))
    assert white_corner(small.mean(axis=-1)) == corner


def test_pixel_aspect_ratio_is_applied(tmp_path: Path) -> None:
    wide = corner_source_video(tmp_path / "wide.mkv", "160x120", "-vf", "setsar=2/1")
    assert (probe_video(str(wide), LIMITS).width, probe_video(str(wide), LIMITS).height) == (320, 120)
    picture = cut_picture(wide, tmp_path, CutConfig())
    assert picture.shape == (120, 320)
    assert (picture[30] > 128).sum() == pytest.approx(160, abs=2)


def test_downmix_keeps_centre_channel(tmp_path: Path) -> None:
    voice = "aevalsrc='0|0|0.5*sin(2*PI*1000*t)|0|0|0':s=48000:c=5.1:d=2"
    source_video = corner_source_video(
        tmp_path / "a.mkv", "96x64", "-f", "lavfi", "-i", voice, "-c:a", "flac"
    )
    _, sound = cut(source_video, 0.0, 16, tmp_path)
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    assert np.argmax(power) / len(sound) * 24_000 == pytest.approx(1000, abs=2)
    assert np.abs(sound).max() > 0.05


def test_too_short_cut_raises(tmp_path: Path, source_video: SourceVideo) -> None:
    found = probe_video(str(source_video.path), LIMITS)
    with pytest.raises(UserError, match="frames") as caught:
        cut_one(str(source_video.path), found, 7.0, 80, tmp_path)
    assert caught.value.kind == "cut-failed"


def test_clip_frames_are_decoded_at_their_times(source_video: SourceVideo) -> None:
    found = probe_video(str(source_video.path), LIMITS)
    pictures = decode_clip_frames(str(source_video.path), found, 2.0, 3.0, 25, 48, LIMITS)
    assert pictures.shape == (75, 32, 48, 3)
    np.testing.assert_array_equal(pictures.mean(axis=(1, 2, 3)) > 128, source_video.lit[50:125])


def cut_picture(
    source_video: Path, folder: Path, config: CutConfig, boxes: np.ndarray | None = None
) -> np.ndarray:
    """The first frame of a cut, in grey."""
    found = probe_video(str(source_video), LIMITS)
    clip = cut_one(str(source_video), found, 0.0, 8, folder, config, boxes)
    picture: np.ndarray = decode_video(clip.mp4.read_bytes())[0].mean(axis=-1)
    return picture


def white_corner(picture: np.ndarray) -> str:
    height, width = picture.shape
    halves = {"upper": slice(0, height // 2), "lower": slice(height // 2, None)}
    sides = {"left": slice(0, width // 2), "right": slice(width // 2, None)}
    light = {
        f"{v} {h}": picture[rows, columns].mean()
        for v, rows in halves.items()
        for h, columns in sides.items()
    }
    return max(light, key=light.__getitem__)


FACE = np.array([[0.6, 0.3, 0.8, 0.5], [0.62, 0.3, 0.82, 0.5], [0.61, 0.31, 0.81, 0.51]])


@given(
    st.integers(16, 4000),
    st.integers(16, 4000),
    st.sampled_from([2, 8, 16, 32]),
    st.sampled_from(["none", "face"]),
    st.floats(0.5, 2),
    st.floats(1, 4),
    st.integers(64 * 64, 1_000_000),
)
def test_framing_lies_within_frame_and_obeys_size_rules(
    width: int, height: int, multiple: int, crop: str, aspect: float, faces: float, pixels: int
) -> None:
    config = CutConfig(pixels=pixels, multiple=multiple, crop=crop, crop_aspect=aspect, crop_faces=faces)
    for boxes in (FACE, FACE[:0]):
        shown = choose_framing(width, height, boxes, config)
        assert shown.width % multiple == shown.height % multiple == 0
        assert shown.width * shown.height <= max(pixels, multiple**2)
        assert 0 <= shown.x <= width - shown.crop_width
        assert 0 <= shown.y <= height - shown.crop_height
        if min(shown.crop_width, shown.crop_height) >= 8 * multiple:
            assert shown.width <= shown.crop_width + 1
            # as many source pixels across as down: nothing is stretched
            across, down = shown.crop_width / shown.width, shown.crop_height / shown.height
            assert across == pytest.approx(down, rel=1 / min(shown.crop_width, shown.crop_height) + 1e-6)


@pytest.mark.parametrize(
    ("size", "pixels", "multiple", "fitted"),
    [
        ((1080, 1920), 512 * 512, 2, (384, 682)),
        ((512, 512), 512 * 512, 2, (512, 512)),
        ((101, 51), 512 * 512, 2, (100, 50)),
        ((1920, 1080), 832 * 480, 16, (832, 480)),
        ((3000, 2), 512 * 512, 2, (3000, 2)),
    ],
)
def test_size_is_within_pixel_limit_and_never_enlarged(
    size: tuple[int, int], pixels: int, multiple: int, fitted: tuple[int, int]
) -> None:
    assert size_within(*size, pixels, multiple) == fitted


def test_transformed_box_matches_face_in_cut_frame(tmp_path: Path) -> None:
    face = "drawbox=x=200:y=60:w=60:h=60:c=white:t=fill"
    source_video = render(tmp_path / "a.mkv", "-f", "lavfi", "-i", f"color=black:s=320x240:r=16:d=1,{face}")
    box = np.array([[200 / 320, 60 / 240, 260 / 320, 120 / 240]])
    config = CutConfig(crop="face", crop_faces=2.0, multiple=8)
    picture = cut_picture(source_video, tmp_path, config, box)
    shown = choose_framing(320, 240, box, config)
    assert picture.shape == (shown.height, shown.width) == (120, 120)
    rows, columns = np.nonzero(picture > 128)
    seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 120
    assert seen == pytest.approx(shown.transform(box)[0], abs=1.5 / 120)
    assert shown.transform(box.reshape(1, 2, 2)).reshape(1, 4) == pytest.approx(shown.transform(box))


def test_crop_of_face_at_edge_stays_within_frame() -> None:
    shown = choose_framing(640, 360, np.array([[0.0, 0.0, 0.1, 0.2]]), CutConfig(crop="face", crop_faces=3.0))
    assert (shown.x, shown.y, shown.crop_width, shown.crop_height) == (0, 0, 216, 216)
    whole = Framing(640, 360, 0, 0, 640, 360, 320, 180)
    assert whole.transform(FACE) == pytest.approx(FACE)
    assert whole.transform(np.zeros((0, 36, 2), np.float32)).shape == (0, 36, 2)
