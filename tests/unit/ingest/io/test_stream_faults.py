"""Badly muxed files: one clock for analysis and cut, the right streams, lengths, channels and colours."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from timed_videos import LIMITS, Analysed, run_ffmpeg, timed_base, two_tracks

from uniavgen.ingest.io import media
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.shards.errors import UserError

H264 = ("-c:v", "libx264", "-qp", "8", "-g", "25", "-bf", "2", "-pix_fmt", "yuv420p")
MPEG2 = ("-c:v", "mpeg2video", "-q:v", "2", "-c:a", "mp2", "-b:a", "256k", "-ar", "48000")
AAC = ("-c:a", "aac", "-b:a", "128k", "-ar", "48000")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return timed_base(tmp_path_factory.mktemp("base"))


def join(target: Path, *parts: Path) -> Path:
    target.write_bytes(b"".join(part.read_bytes() for part in parts))
    return target


def part(base: Path, target: Path, start: float, end: float, *options: object) -> Path:
    run_ffmpeg("-ss", start, "-t", end - start, "-i", base, *options, target)
    return target


def restarted_ts(base: Path, folder: Path) -> Path:
    """8 s, then the same video from 4 s on, with timestamps that start anew."""
    return join(
        folder / "restart.ts",
        part(base, folder / "p1.ts", 0, 8, *H264, *AAC),
        part(base, folder / "p2.ts", 4, 18, *H264, *AAC),
    )


def restarted_thrice(base: Path, folder: Path) -> Path:
    parts = [
        part(base, folder / f"q{n}.ts", a, b, *H264, *AAC)
        for n, (a, b) in enumerate(((0, 4), (2, 6), (4, 18)))
    ]
    return join(folder / "thrice.ts", *parts)


def jumping_ts(base: Path, folder: Path) -> Path:
    return join(
        folder / "jump.ts",
        part(base, folder / "j1.ts", 0, 8, *H264, *AAC),
        part(base, folder / "j2.ts", 4, 18, *H264, *AAC, "-output_ts_offset", 60),
    )


def restarted_mpg(base: Path, folder: Path) -> Path:
    return join(
        folder / "restart.mpg",
        part(base, folder / "m1.mpg", 0, 8, *MPEG2),
        part(base, folder / "m2.mpg", 4, 18, *MPEG2),
    )


def restarted_flv(base: Path, folder: Path) -> Path:
    """A live stream that was connected anew: its tags start at 0 again."""
    first = part(base, folder / "f1.flv", 0, 8, *H264, *AAC)
    second = part(base, folder / "f2.flv", 4, 18, *H264, *AAC)
    (folder / "restart.flv").write_bytes(first.read_bytes() + second.read_bytes()[13:])
    return folder / "restart.flv"


def other_rates(base: Path, folder: Path) -> Path:
    """Recordings of two devices: 25 and 30 frames/s, 48 and 44.1 kHz, two frame sizes."""
    first = part(base, folder / "o1.ts", 0, 8, *H264, *AAC)
    other = ("-c:a", "aac", "-ar", 44100, "-r", 30, "-vf", "scale=128:96,setsar=1")
    return join(folder / "other.ts", first, part(base, folder / "o2.ts", 4, 18, *H264, *other))


def short_audio(base: Path, folder: Path) -> Path:
    """The first recording's audio ends 3.5 s before its video, the second's starts 1 s late."""
    first = part(base, folder / "s1.ts", 0, 8, *H264, *AAC, "-af", "atrim=end=4.5")
    second = part(base, folder / "s2.ts", 4, 18, *H264, *AAC, "-af", "atrim=start=1")
    return join(folder / "short.ts", first, second)


def live_stream_of_another_encoder(base: Path, folder: Path) -> Path:
    first = part(base, folder / "e1.flv", 0, 8, *H264, *AAC)
    second = part(base, folder / "e2.flv", 4, 18, *H264, *AAC, "-vf", "scale=128:96,setsar=1")
    (folder / "encoder.flv").write_bytes(first.read_bytes() + second.read_bytes()[13:])
    return folder / "encoder.flv"


JOINED = {
    "restart": (restarted_ts, {2.0: 2.0, 9.5: 5.5, 12.0: 8.0, 18.0: 14.0}, 22.0),
    "three parts": (restarted_thrice, {2.0: 2.0, 5.0: 3.0, 12.0: 8.0, 19.0: 15.0}, 22.0),
    "jump": (jumping_ts, {2.0: 2.0, 9.5: 5.5, 12.0: 8.0, 18.0: 14.0}, 22.0),
    "program stream": (restarted_mpg, {2.0: 2.0, 9.5: 5.5, 12.0: 8.0, 18.0: 14.0}, 22.0),
    "other rates": (other_rates, {2.0: 2.0, 9.5: 5.5, 12.0: 8.0, 18.0: 14.0}, 22.0),
    "short audio": (short_audio, {2.0: 2.0, 10.0: 6.0, 12.0: 8.0, 18.0: 14.0}, 22.0),
    "another encoder": (live_stream_of_another_encoder, {2.0: 2.0, 9.5: 5.5, 12.0: 8.0, 18.0: 14.0}, 22.0),
    "live stream": (restarted_flv, {2.0: 2.0, 9.5: 5.5, 12.0: 8.0, 18.0: 14.0}, 22.0),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_recordings_have_one_clock_for_analysis_and_cut(name: str, base: Path, tmp_path: Path) -> None:
    make: Callable[[Path, Path], Path]
    make, expected, length_s = JOINED[name]
    video = Analysed(make(base, tmp_path), tmp_path)
    assert "timestamps" in video.source.repairs
    assert video.source.duration_s == pytest.approx(length_s, abs=0.4)
    assert len(video.frames) / 16 == pytest.approx(length_s, abs=0.4)
    for start_s, base_s in expected.items():
        analysed, cut = video.analysis(start_s), video.cut(start_s)
        for found in (analysed, cut):
            assert found.video_s == pytest.approx(base_s, abs=0.25), (start_s, analysed, cut)
            assert found.audio_s == pytest.approx(base_s, abs=0.25), (start_s, analysed, cut)
            assert found.fit > 0.6
        assert cut.video_s == pytest.approx(analysed.video_s, abs=0.09)
        assert cut.audio_s == pytest.approx(analysed.audio_s, abs=0.005)


UNSEEKABLE = {
    "keyframes 16 s apart": (
        "ts",
        ("-c:v", "libx264", "-g", "500", "-keyint_min", "500", *AAC),
        ("seeking",),
    ),
    "timestamps of 33 bits": ("ts", (*H264, *AAC, "-output_ts_offset", 2**33 / 90000 - 6), ()),
    "33 bits, program stream": ("mpg", (*MPEG2, "-output_ts_offset", 2**33 / 90000 - 6), ("seeking",)),
    "no keyframes": ("ts", ("-c:v", "libx264", "-x264-params", "intra-refresh=1:keyint=50", *AAC), ()),
}


@pytest.mark.parametrize("name", UNSEEKABLE)
def test_cut_finds_its_time_where_seeking_is_hard(name: str, base: Path, tmp_path: Path) -> None:
    ending, options, repairs = UNSEEKABLE[name]
    video = Analysed(part(base, tmp_path / f"hard.{ending}", 0, 18, *options), tmp_path)
    assert video.source.repairs == repairs
    for start_s in (9.5, 13.0, 16.0):
        for found in (video.analysis(start_s), video.cut(start_s)):
            assert found.video_s == pytest.approx(start_s, abs=0.25), (start_s, found)
            assert found.audio_s == pytest.approx(start_s, abs=0.05)


def late_by_its_fragments(base: Path, folder: Path) -> Path:
    """Timestamps of the audio leave 59 ms out after its first packet, as this muxer writes them."""
    flags = ("-movflags", "+frag_keyframe+empty_moov+default_base_moof")
    return part(base, folder / "fragments.mp4", 0, 18, *H264, "-bf", 2, *AAC, *flags)


def overlapping_parts(base: Path, folder: Path) -> Path:
    """The second part begins with the 21 ms that its encoder puts before its audio."""
    first = part(base, folder / "v1.ts", 0, 7, *H264, *AAC)
    return join(
        folder / "over.ts", first, part(base, folder / "v2.ts", 7, 18, *H264, *AAC, "-output_ts_offset", 7)
    )


def missing_block(base: Path, folder: Path) -> Path:
    """50 ms of audio are lost at 5 s, and no timestamp of what follows changes."""
    lost = ("-af", "asetnsamples=800,aselect='not(between(t,4.99,5.01))'", "-c:a", "pcm_s16le")
    return part(base, folder / "lost.mkv", 0, 18, *H264, *lost)


UNEVEN = (late_by_its_fragments, overlapping_parts, missing_block)


@pytest.mark.parametrize("make", UNEVEN, ids=lambda make: make.__name__)
def test_audio_whose_samples_are_beside_its_timestamps_has_one_clock(
    make: Callable[[Path, Path], Path], base: Path, tmp_path: Path
) -> None:
    video = Analysed(make(base, tmp_path), tmp_path)
    assert video.source.repairs == ("audio-gaps",)
    for start_s in (3.0, 9.5, 16.0):
        analysed, cut = video.analysis(start_s), video.cut(start_s)
        assert cut.audio_s == pytest.approx(analysed.audio_s, abs=0.002)
        assert cut.audio_s - cut.video_s == pytest.approx(0.0, abs=0.15)
    if make is missing_block:
        assert [video.cut(start_s).audio_s for start_s in (3.0, 16.0)] == pytest.approx(
            [3.0, 16.0], abs=0.002
        )


def test_chain_of_ogg_videos_is_not_read_in_part(base: Path, tmp_path: Path) -> None:
    theora = ("-c:v", "libtheora", "-q:v", 8, "-c:a", "libvorbis")
    parts = [part(base, tmp_path / f"{n}.ogv", 9 * n, 9 * n + 9, *theora) for n in (0, 1)]
    assert probe_video(str(parts[0]), LIMITS).duration_s == pytest.approx(9, abs=0.1)
    with pytest.raises(UserError, match=r"cannot be read after 9\.\d s, \d+% of the file") as caught:
        probe_video(str(join(tmp_path / "chain.ogv", *parts)), LIMITS)
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("ending", ["ts", "mpg", "mkv", "mp4", "flv"])
def test_late_audio_has_one_clock_in_every_container(ending: str, base: Path, tmp_path: Path) -> None:
    codecs = MPEG2 if ending == "mpg" else (*H264, *AAC)
    path = tmp_path / f"late.{ending}"
    run_ffmpeg("-i", base, "-af", "atrim=start=0.6", *codecs, path)
    video = Analysed(path, tmp_path)
    for start_s in (2.0, 13.0):
        for found in (video.analysis(start_s), video.cut(start_s)):
            assert found.video_s == pytest.approx(start_s, abs=0.2)
            assert found.audio_s == pytest.approx(start_s, abs=0.05)


OPPOSITE = "pan=stereo|c0=c0|c1=-1*c0"

FORMATS = {
    "channels": (("-ac", "2"), ("-ac", "1")),
    "rate": (("-ar", "48000"), ("-ar", "32000")),
    "channels and rate": (("-ac", "6", "-ar", "48000"), ("-ac", "2", "-ar", "44100")),
    "to a lower rate in opposite phase": (("-ar", "48000"), ("-af", f"{OPPOSITE},aresample=24000")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_audio_format_that_changes_in_mid_stream_keeps_its_time(
    name: str, base: Path, tmp_path: Path
) -> None:
    first, second = FORMATS[name]
    a1 = part(base, tmp_path / "a1.ts", 0, 5.8, "-vn", "-c:a", "aac", *first)
    a2 = part(base, tmp_path / "a2.ts", 5.8, 18, "-vn", "-c:a", "aac", *second, "-output_ts_offset", 5.8)
    path = tmp_path / "change.ts"
    audio = join(tmp_path / "a.ts", a1, a2)
    run_ffmpeg("-i", base, "-i", audio, "-map", "0:v", "-map", "1:a", *H264, "-c:a", "copy", path)
    video = Analysed(path, tmp_path)
    assert "audio-format" in video.source.repairs
    assert video.audio.duration_s == pytest.approx(18, abs=0.2)
    for start_s in (2.0, 5.0, 8.0, 14.0):
        for found in (video.analysis(start_s), video.cut(start_s)):
            assert found.audio_s == pytest.approx(start_s, abs=0.08), (start_s, found)
            assert found.video_s == pytest.approx(start_s, abs=0.2)


@pytest.mark.parametrize(("width", "height"), [(32, 32), (128, 128), (48, 96)])
def test_frame_size_that_changes_in_mid_stream_keeps_frames_and_audio(
    width: int, height: int, base: Path, tmp_path: Path
) -> None:
    vp8 = ("-an", "-c:v", "libvpx", "-b:v", "1M", "-deadline", "realtime", "-cpu-used", "8")
    part(base, tmp_path / "p1.webm", 0, 4, *vp8)
    part(base, tmp_path / "p2.webm", 4, 16, *vp8, "-vf", f"scale={width}:{height},setsar=1")
    (tmp_path / "list.txt").write_text("file p1.webm\nfile p2.webm\n")
    run_ffmpeg("-f", "concat", "-i", tmp_path / "list.txt", "-c", "copy", tmp_path / "v.webm")
    path = tmp_path / "sizes.webm"
    run_ffmpeg(
        "-i",
        tmp_path / "v.webm",
        "-i",
        base,
        "-map",
        "0:v",
        "-map",
        "1:a",
        "-t",
        16,
        "-c:v",
        "copy",
        "-c:a",
        "libopus",
        path,
    )
    video = Analysed(path, tmp_path)
    assert video.source.frame_sizes == 2
    assert (video.source.width, video.source.height) == max((64, 64), (width, height), key=np.prod)
    assert len(video.frames) == pytest.approx(16 * 16, abs=1)
    for start_s in (1.0, 3.0, 5.0, 12.0):
        for found in (video.analysis(start_s), video.cut(start_s)):
            assert found.video_s == pytest.approx(start_s, abs=0.2), (start_s, found)
            assert found.audio_s == pytest.approx(start_s, abs=0.05)


TRACKS = {
    "default second": ("sine=f=300", ("-disposition:a:0", "0", "-disposition:a:1", "default")),
    "commentary first": ("sine=f=300", ("-disposition:a:0", "comment", "-disposition:a:1", "0")),
    "audio description first": (
        "sine=f=300",
        ("-disposition:a:0", "visual_impaired+descriptions", "-disposition:a:1", "0"),
    ),
    "tiny default": (
        "sine=f=300:d=0.4,apad=whole_dur=18",
        ("-disposition:a:0", "default", "-disposition:a:1", "0"),
    ),
    "silent default": ("anullsrc=r=48000", ("-disposition:a:0", "default", "-disposition:a:1", "0")),
    "named commentary": (
        "sine=f=300",
        ("-metadata:s:a:0", "title=Director's commentary", "-disposition:a:0", "0", "-disposition:a:1", "0"),
    ),
}


@pytest.mark.parametrize(
    ("ending", "name"),
    [*(("mkv", name) for name in TRACKS), ("mp4", "default second"), ("mp4", "silent default")],
)
def test_main_audio_track_is_chosen_by_its_flags(ending: str, name: str, base: Path, tmp_path: Path) -> None:
    other, dispositions = TRACKS[name]
    video = Analysed(two_tracks(base, tmp_path / f"two.{ending}", other, *dispositions), tmp_path)
    assert video.source.audio_stream == 2
    assert [stream.kind for stream in video.source.streams] == ["video", "audio", "audio"]
    for found in (video.analysis(3.0), video.cut(12.0)):
        assert found.fit > 0.6


def test_audio_track_is_selected_by_language_or_number(base: Path, tmp_path: Path) -> None:
    languages = ("-metadata:s:a:0", "language=ger", "-metadata:s:a:1", "language=eng")
    path = two_tracks(base, tmp_path / "languages.mkv", "sine=f=300", *languages)
    chosen = {
        wanted: probe_video(str(path), LIMITS, wanted).audio_stream
        for wanted in ("", "en", "eng", "de", "deu", "1")
    }
    assert chosen == {"": 1, "en": 2, "eng": 2, "de": 1, "deu": 1, "1": 2}
    with pytest.raises(UserError, match="no audio track 'fr'; the file has 0: ger, 1: eng") as caught:
        probe_video(str(path), LIMITS, "fr")
    assert caught.value.kind == "no-audio-track"


def test_cover_pictures_and_small_previews_are_not_the_video(base: Path, tmp_path: Path) -> None:
    run_ffmpeg("-i", base, "-frames:v", 1, "-vf", "scale=640:640", tmp_path / "cover.png")
    covered = tmp_path / "cover.mp4"
    inputs = ("-i", tmp_path / "cover.png", "-i", base, "-map", "0:v", "-map", "1")
    run_ffmpeg(
        *inputs, "-c:v:0", "png", "-disposition:v:0", "attached_pic", "-c:v:1", "copy", "-c:a", "aac", covered
    )
    previewed = tmp_path / "preview.mkv"
    flags = ("-disposition:v:0", "0", "-disposition:v:1", "default")
    inputs = ("-i", base, "-map", "0:v", "-map", "0:v", "-map", "0:a", "-filter:v:0", "scale=32:32")
    run_ffmpeg(*inputs, *H264, *AAC, *flags, previewed)
    for path in (covered, previewed):
        video = Analysed(path, tmp_path)
        assert (video.source.width, video.source.height) == (64, 64)
        assert video.cut(12.0).video_s == pytest.approx(12.0, abs=0.2)


def test_length_is_that_of_the_chosen_streams(base: Path, tmp_path: Path) -> None:
    (tmp_path / "s.srt").write_text(
        "1\n00:00:01,000 --> 00:00:03,000\na\n\n2\n00:01:00,000 --> 00:01:05,000\nb\n"
    )
    for ending, subtitles in (("mkv", "srt"), ("mp4", "mov_text")):
        path = tmp_path / f"subtitles.{ending}"
        run_ffmpeg(
            "-i",
            base,
            "-i",
            tmp_path / "s.srt",
            "-map",
            "0",
            "-map",
            "1",
            "-c:v",
            "copy",
            "-c:a",
            "aac",
            "-c:s",
            subtitles,
            path,
        )
        probe = probe_video(str(path), LIMITS)
        assert probe.duration_s == pytest.approx(18, abs=0.1)
        assert probe.declared_s == pytest.approx(18, abs=0.1)


def test_truncated_file_declares_more_than_it_holds(base: Path, tmp_path: Path) -> None:
    for ending in ("mkv", "mp4"):
        path = tmp_path / f"whole.{ending}"
        run_ffmpeg("-i", base, *H264, *AAC, "-movflags", "+faststart", path)
        cut = tmp_path / f"cut.{ending}"
        cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        probe = probe_video(str(cut), LIMITS)
        assert probe.declared_s == pytest.approx(18, abs=0.1)
        assert probe.duration_s < 12


MIXES = {
    "opposite": (OPPOSITE, "difference"),
    "nearly left only": ("pan=stereo|c0=c0|c1=0.03*c0", "left"),
    "center only": ("pan=5.1|FC=c0", "center"),
    "center with music": ("pan=5.1|FC=c0|FL=0.5*c0|FR=0.5*c0", "mix"),
    "left only": ("pan=stereo|c0=c0|c1=0*c0", "left"),
    "right only": ("pan=stereo|c0=0*c0|c1=c0", "right"),
    "same": ("pan=stereo|c0=c0|c1=c0", "mix"),
    "half opposite": ("pan=stereo|c0=c0|c1=0.5*c0", "mix"),
}


@pytest.mark.parametrize("name", MIXES)
def test_two_channels_become_one_without_loss(name: str, base: Path, tmp_path: Path) -> None:
    mix, expected = MIXES[name]
    path = tmp_path / "stereo.mkv"
    run_ffmpeg("-i", base, "-af", mix, "-c:v", "copy", "-c:a", "flac", path)
    video = Analysed(path, tmp_path)
    assert video.source.mono == expected
    reference = media_level(Analysed(base, tmp_path))
    loss_db = {"half opposite": 2.5, "center with music": 6.1}.get(name, 0.1)
    assert media_level(video) == pytest.approx(reference, abs=loss_db)
    assert video.cut(12.0).fit > 0.95


def media_level(video: Analysed) -> float:
    pcm = video.audio.span(0, 18).astype(float) / 32768
    return float(10 * np.log10(np.square(pcm).mean()))


def test_phase_that_changes_in_between_takes_one_side(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "turned.mkv"
    run_ffmpeg(
        "-i",
        base,
        "-af",
        "aeval='val(0)|val(0)*(1-2*gt(t,9))':c=stereo",
        "-c:v",
        "copy",
        "-c:a",
        "pcm_s16le",
        path,
    )
    video = Analysed(path, tmp_path)
    assert video.source.mono == "left"
    assert video.cut(4.0).fit > 0.95
    assert video.cut(14.0).fit > 0.95


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_high_dynamic_range_is_tone_mapped_in_analysis_and_cut(
    transfer: str, base: Path, tmp_path: Path
) -> None:
    path = tmp_path / "hdr.mp4"
    wrap = (
        "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv,zscale=t=linear:npl=100,"
        f"format=gbrpf32le,zscale=p=bt2020,format=gbrpf32le,zscale=t={transfer}:m=bt2020nc:r=tv,format=yuv420p10le"
    )
    colours = f"log-level=error:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    run_ffmpeg(
        "-i",
        base,
        "-vf",
        wrap,
        "-c:v",
        "libx265",
        "-preset",
        "ultrafast",
        "-crf",
        8,
        "-x265-params",
        colours,
        "-c:a",
        "aac",
        path,
    )
    hdr, plain = Analysed(path, tmp_path), Analysed(base, tmp_path)
    assert (hdr.source.transfer, plain.source.transfer) == (transfer, "")
    for start_s in (2.0, 8.0, 14.0):
        assert float(hdr.frames[round(start_s * 16)].mean()) == pytest.approx(
            float(plain.frames[round(start_s * 16)].mean()), abs=8
        )
        assert hdr.cut(start_s).video_s == pytest.approx(start_s, abs=0.7)


def test_variant_is_empty_for_ordinary_files_only(base: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.mp4"
    run_ffmpeg("-i", base, *H264, *AAC, plain)
    assert probe_video(str(plain), LIMITS).variant == ""
    assert probe_video(str(base), LIMITS).variant == ""
    assert "timestamps" in probe_video(str(restarted_ts(base, tmp_path)), LIMITS).variant


@pytest.fixture(scope="module")
def tagged_hdr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PQ with every colour tag."""
    path = tmp_path_factory.mktemp("tags") / "full.mkv"
    tags = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc:range=tv"
    source = ("-f", "lavfi", "-i", "testsrc=s=96x64:r=25:d=0.6", "-vf", f"format=yuv420p10le,{tags}")
    run_ffmpeg(*source, "-c:v", "libx264", "-qp", 1, path)
    return path


def with_tags(source: Path, path: Path, primaries: int, transfer: int, matrix: int) -> Path:
    """The same coded frames, other numbers of H.273."""
    tags = f"colour_primaries={primaries}:transfer_characteristics={transfer}:matrix_coefficients={matrix}"
    run_ffmpeg("-i", source, "-c", "copy", "-bsf:v", f"h264_metadata={tags}", path)
    return path


def mapped_frames(path: Path) -> np.ndarray:
    probe = probe_video(str(path), LIMITS)
    return np.stack(list(media.decode_frames(str(path), probe, 96, 25, None, LIMITS))).astype(int)


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize(("primaries", "matrix"), [(2, 2), (2, 9), (9, 2), (1, 1), (12, 9)])
def test_missing_colour_tags_of_high_dynamic_range_are_those_of_bt2020(
    primaries: int, matrix: int, transfer: int, tagged_hdr: Path, tmp_path: Path
) -> None:
    full = with_tags(tagged_hdr, tmp_path / "full.mkv", 9, transfer, 9)
    partly = with_tags(tagged_hdr, tmp_path / "partly.mkv", primaries, transfer, matrix)
    np.testing.assert_array_equal(mapped_frames(partly), mapped_frames(full))


@pytest.mark.parametrize(
    ("matrix", "name", "transfer"), [(8, "ycgco", 16), (14, "ictcp", 16), (8, "ycgco", 1), (10, "2020_cl", 1)]
)
def test_rare_colour_matrix_gives_the_same_colours(
    matrix: int, name: str, transfer: int, tmp_path: Path
) -> None:
    primaries, usual = (9, 9) if transfer == 16 else (1, 1)
    brown = ("-f", "lavfi", "-i", "color=0x806040:s=96x64:r=25:d=0.6", "-pix_fmt", "yuv420p10le")
    run_ffmpeg(*brown, "-c:v", "libx264", "-qp", 1, tmp_path / "brown.mkv")
    plain = with_tags(tmp_path / "brown.mkv", tmp_path / "plain.mkv", primaries, transfer, usual)
    other = tmp_path / "other.mkv"
    # the encoder must not see the matrix it cannot read: the tag is written afterwards
    recode = ("-vf", f"zscale=m={name},setparams=colorspace=bt709", "-pix_fmt", "yuv420p10le")
    run_ffmpeg("-i", plain, *recode, "-c:v", "libx264", "-qp", 1, other)
    rare = with_tags(other, tmp_path / "rare.mkv", primaries, transfer, matrix)
    assert probe_video(str(rare), LIMITS).matrix == name
    assert np.abs(mapped_frames(rare) - mapped_frames(plain)).max() <= 3


def test_colour_matrix_that_nothing_can_read_is_named(tagged_hdr: Path, tmp_path: Path) -> None:
    path = with_tags(tagged_hdr, tmp_path / "dolby.mkv", 9, 16, 15)
    with pytest.raises(UserError, match="colour matrix 15 of ITU-T H.273 cannot be converted") as caught:
        probe_video(str(path), LIMITS)
    assert caught.value.kind == "decode-failed"
