"""Step `cut`: a clip that does not hold what was analysed fails, alone, with figures.

Each planted fault is one that another part of ingest mends. Here that part is left out by an untrue probe or
another file, so that the comparison alone can catch it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from clip_cutting import analysed_record, run_cut_step
from timed_videos import LIMITS, run_ffmpeg, timed_base, two_tracks, without_stream_facts

from uniavgen.ingest.config import CutConfig
from uniavgen.ingest.io.clip_proof import (
    WHOLE,
    clip_pictures,
    compare_pictures,
    cropped,
    is_resolved,
    luma_of,
    picture_cells,
)
from uniavgen.ingest.io.media import decode_frames
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.measures.cut import choose_framing
from uniavgen.ingest.records import PlayableCopy, Probe, SourceRecord

H264 = ("-c:v", "libx264", "-qp", "8", "-g", "25", "-pix_fmt", "yuv420p")
AAC = ("-c:a", "aac", "-b:a", "128k", "-ar", "48000")


@dataclass(frozen=True)
class Plant:
    """A source as it was analysed (file and probe), and as its clips are cut; its right and wrong clips."""

    analysed: tuple[Path, Probe]
    cut: tuple[Path, Probe]
    wrong: tuple[tuple[float, float], ...]
    says: str
    right: tuple[tuple[float, float], ...] = ()


def probed(path: Path) -> Probe:
    return probe_video(str(path), LIMITS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return timed_base(tmp_path_factory.mktemp("base"))


def joined(base: Path, folder: Path, wrong: tuple[float, float], *options: object) -> Plant:
    """8 s, then the same video from 4 s on with other timestamps, read without a repaired copy."""
    path, parts = folder / "joined.ts", []
    for number, (start, end, more) in enumerate(((0, 8, ()), (4, 18, options))):
        parts.append(folder / f"{number}.ts")
        run_ffmpeg("-ss", start, "-t", end - start, "-i", base, *H264, *AAC, *more, parts[-1])
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    probe = probed(path)
    assert probe.repairs == ("timestamps",)
    plain = replace(
        without_stream_facts(probe), video_stream=probe.video_stream, audio_stream=probe.audio_stream
    )
    return Plant((path, plain), (path, plain), (wrong,), "")


def restarting(base: Path, folder: Path) -> Plant:
    return joined(base, folder, (10.5, 12.5))


def jumping(base: Path, folder: Path) -> Plant:
    return joined(base, folder, (19.0, 21.0), "-output_ts_offset", 60)


def other_track(base: Path, folder: Path) -> Plant:
    """The commentary is cut, the main track was analysed."""
    path = two_tracks(base, folder / "two.mkv", "sine=f=300", "-disposition:a:1", "default")
    probe = probed(path)
    assert probe.audio_stream == 2
    return Plant((path, probe), (path, replace(probe, audio_stream=1)), ((1.0, 3.0), (13.0, 15.0)), "sound")


def opposite_phase(base: Path, folder: Path) -> Plant:
    return mixed(base, folder, "pan=stereo|c0=c0|c1=-1*c0", "difference")


def left_only(base: Path, folder: Path) -> Plant:
    return mixed(base, folder, "pan=stereo|c0=c0|c1=0*c0", "left")


def mixed(base: Path, folder: Path, pan: str, mono: str) -> Plant:
    path = folder / "stereo.mkv"
    run_ffmpeg("-i", base, "-c:v", "copy", "-af", pan, "-c:a", "flac", path)
    probe = probed(path)
    assert probe.mono == mono
    return Plant((path, probe), (path, replace(probe, mono="mix")), ((1.0, 3.0), (13.0, 15.0)), "sound")


def high_dynamic_range(base: Path, folder: Path) -> Plant:
    path = folder / "pq.mkv"
    linear = (
        "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv,zscale=t=linear:npl=100"
    )
    wrap = "format=gbrpf32le,zscale=p=bt2020,zscale=t=smpte2084:m=bt2020nc:r=tv,format=yuv420p10le"
    colours = "log-level=error:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc"
    x265 = ("-c:v", "libx265", "-preset", "ultrafast", "-crf", 8, "-x265-params", colours)
    run_ffmpeg("-i", base, "-vf", f"{linear},{wrap}", *x265, "-c:a", "copy", path)
    probe = probed(path)
    assert probe.transfer
    return Plant((path, probe), (path, replace(probe, transfer="")), ((2.0, 4.0), (13.0, 15.0)), "pictures")


def frozen_pictures(base: Path, folder: Path) -> Plant:
    path = folder / "frozen.mkv"
    freeze = "trim=end=12.5,tpad=stop_mode=clone:stop_duration=6"
    run_ffmpeg("-i", base, "-vf", freeze, *H264, "-c:a", "copy", path)
    return Plant((base, probed(base)), (path, probed(path)), ((13.0, 15.0),), "pictures", ((1.0, 3.0),))


def other_speech(base: Path, folder: Path) -> Plant:
    path = folder / "late.mkv"
    run_ffmpeg("-i", base, "-c:v", "copy", "-af", "asetpts=PTS,adelay=120", "-c:a", "pcm_s16le", path)
    return Plant((base, probed(base)), (path, probed(path)), ((1.0, 3.0), (13.0, 15.0)), "lag +120 ms")


def late_from_the_middle(base: Path, folder: Path) -> Plant:
    """What a change of the audio format does to a decoder that does not expect it."""
    path = folder / "gap.mkv"
    halves = "[0:a]asplit[a][b];[a]atrim=end=14[c];[b]atrim=start=14,asetpts=PTS-STARTPTS,adelay=90[d]"
    gap = f"{halves};[c][d]concat=v=0:a=1[e]"
    run_ffmpeg(
        "-i",
        base,
        "-filter_complex",
        gap,
        "-map",
        "0:v",
        "-map",
        "[e]",
        "-c:v",
        "copy",
        "-c:a",
        "pcm_s16le",
        path,
    )
    return Plant(
        (base, probed(base)), (path, probed(path)), ((13.0, 15.0),), "worst half second", ((1.0, 3.0),)
    )


def other_pictures(base: Path, folder: Path) -> Plant:
    """Another moment of the same video."""
    path = folder / "early.mkv"
    run_ffmpeg("-i", base, "-vf", "trim=start=1,setpts=PTS-STARTPTS", *H264, "-c:a", "copy", path)
    return Plant((base, probed(base)), (path, probed(path)), ((1.0, 3.0), (13.0, 15.0)), "pictures")


PLANTS: list[Callable[[Path, Path], Plant]] = [
    *(restarting, jumping, other_track, opposite_phase, left_only, high_dynamic_range),
    *(frozen_pictures, other_speech, late_from_the_middle, other_pictures),
]


@pytest.mark.parametrize("make", PLANTS, ids=lambda make: make.__name__)
def test_planted_fault_is_caught_by_the_comparison_alone(
    make: Callable[[Path, Path], Plant], base: Path, tmp_path: Path
) -> None:
    plant = make(base, tmp_path)
    file, probe = plant.analysed
    record = analysed_record(file, probe, file, tmp_path)
    record.results[PlayableCopy] = PlayableCopy(str(plant.cut[0]), plant.cut[1])
    spans = [*plant.right, *plant.wrong]
    failed = run_cut_step(record, spans, tmp_path / "corpus")
    assert set(failed) == set(plant.wrong)
    assert all(plant.says in message for message in failed.values()), failed
    assert {reason.error_type for reason in record.clip_failures.values()} == {"clip-differs"}
    assert len([*(tmp_path / "corpus" / "media").rglob("*.mp4")]) == len(plant.right)
    # the same clips of the file that was analysed
    if make not in (restarting, jumping):
        right = analysed_record(file, probe, file, tmp_path)
        assert not run_cut_step(right, spans, tmp_path / "right")


def record_of(path: Path, folder: Path) -> SourceRecord:
    return analysed_record(path, probed(path), path, folder)


HARMLESS = {
    "no audio": ("testsrc2=s=160x120:r=25:d=8", ""),
    "digital silence": ("testsrc2=s=160x120:r=25:d=8", "anullsrc=r=44100:d=8"),
    "still picture": ("color=gray:s=160x120:r=25:d=8", "anoisesrc=r=44100:d=8:a=0.1:seed=1"),
    "black and silent": ("color=black:s=160x120:r=25:d=8", "anullsrc=r=44100:d=8"),
    "fades": (
        "testsrc2=s=160x120:r=25:d=8,fade=in:d=2,fade=out:st=5:d=2",
        "sine=d=8,afade=in:d=2,afade=out:st=5:d=2",
    ),
    "tone": ("testsrc2=s=160x120:r=30:d=8", "sine=f=440:d=8"),
    "faint noise": ("testsrc2=s=160x120:r=24:d=8", "anoisesrc=r=48000:d=8:a=0.0005:seed=1"),
    "saturated colours": ("color=0x00ff00:s=160x120:r=48:d=8,drawbox=c=red:w=20:x=60", "sine=d=8"),
    "portrait": ("testsrc2=s=90x160:r=50:d=8", "sine=d=8"),
}


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("settings", [{}, {"crop": "face", "crop_aspect": 0.8}], ids=["whole", "crop"])
def test_right_clip_passes(name: str, settings: dict, tmp_path: Path) -> None:
    video, audio = HARMLESS[name]
    path = tmp_path / "a.mp4"
    sound = ("-f", "lavfi", "-i", audio, "-c:a", "aac") if audio else ()
    run_ffmpeg("-f", "lavfi", "-i", video, *sound, *H264, path)
    assert not run_cut_step(
        record_of(path, tmp_path), [(0.5, 3.0), (3.0, 5.0), (5.5, 7.5)], tmp_path / "c", **settings
    )


def test_clip_that_cannot_be_cut_costs_itself_alone(base: Path, tmp_path: Path) -> None:
    spans = [(1.0, 3.0), (16.5, 19.5), (4.0, 6.0)]
    record = record_of(base, tmp_path)
    (message,) = run_cut_step(record, spans, tmp_path / "corpus").values()
    assert "frames" in message
    assert "16.50 to 19.50 s of" in message
    assert [reason.error_type for reason in record.clip_failures.values()] == ["cut-failed"]
    assert len([*(tmp_path / "corpus" / "media").rglob("*.flac")]) == 2


def test_crop_smaller_than_the_cells_is_compared_too(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    video = "testsrc2=s=1280x720:r=25:d=5,scroll=horizontal=0.003"
    run_ffmpeg("-f", "lavfi", "-i", video, *H264, path)
    box = np.tile(np.array([0.47, 0.45, 0.52, 0.55], np.float32), (48, 1))
    settings = {"crop": "face", "crop_faces": 1.5, "crop_aspect": 1.0}
    assert not run_cut_step(record_of(path, tmp_path), [(1.0, 3.0)], tmp_path / "corpus", box, **settings)
    crop = choose_framing(1280, 720, box, CutConfig(crop="face", crop_faces=1.5)).crop
    assert not is_resolved(crop)
    frames = np.stack(list(decode_frames(str(path), probed(path), 512, 1, None, LIMITS)))
    cells = np.array([picture_cells(luma_of(cropped(frame, crop))) for frame in frames])
    (clip,) = (tmp_path / "corpus" / "media").rglob("*.mp4")
    faults = [compare_pictures(clip_pictures(clip, WHOLE), cells, first).fault for first in (16, 0, 32)]
    assert [bool(fault) for fault in faults] == [False, True, True]
