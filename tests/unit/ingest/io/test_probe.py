"""Probing files of unknown origin: correct facts, and damage limited to the file itself."""

import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile_folder import imported_names, make_hostile_folder

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io import probe_client
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.io.media import decode_audio, decode_frames
from uniavgen.ingest.io.probe_client import check_prober, probe_video
from uniavgen.ingest.records import Probe
from uniavgen.shards.errors import UserError

LIMITS = LimitConfig()
CODECS = {
    "mp4": (),
    "mov": ("-c:v", "mpeg4"),
    "mkv": ("-c:a", "libmp3lame"),
    "webm": ("-c:v", "libvpx", "-c:a", "libopus"),
    "avi": ("-c:v", "mjpeg", "-c:a", "pcm_s16le"),
    "mpg": ("-c:v", "mpeg1video", "-c:a", "mp2"),
    "ts": ("-c:v", "mpeg2video", "-c:a", "ac3"),
    "flv": ("-c:v", "flv", "-c:a", "libmp3lame", "-ar", "44100"),
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One second of moving video with a tone, in eight containers."""
    folder, paths = tmp_path_factory.mktemp("videos"), {}
    inputs = [
        "-f",
        "lavfi",
        "-i",
        "testsrc=s=96x64:r=25:d=1",
        "-f",
        "lavfi",
        "-i",
        "sine=d=1",
        "-pix_fmt",
        "yuv420p",
    ]
    for ending, codecs in CODECS.items():
        paths[ending] = folder / f"video.{ending}"
        command = [ffmpeg_path(), "-loglevel", "error", *inputs, *codecs]
        subprocess.run([*command, "-strict", "-1", str(paths[ending])], check=True, timeout=60)
    return paths


@pytest.mark.parametrize("ending", CODECS)
def test_probe_reports_size_rate_and_duration(videos: dict[str, Path], ending: str) -> None:
    probed = probe_video(str(videos[ending]), LIMITS)
    assert (probed.width, probed.height, probed.fps, probed.has_audio) == (96, 64, 25.0, True)
    assert probed.duration_s == pytest.approx(1.0, abs=0.1)
    assert probed.bytes == videos[ending].stat().st_size
    assert 0 < probed.bit_rate <= probed.bytes * 8 / probed.duration_s
    assert probed.interlaced_ratio == 0.0


def test_bit_rate_follows_the_encoder_setting(tmp_path: Path) -> None:
    rates = []
    for kilobits in (100, 400):
        video = tmp_path / f"{kilobits}.mkv"  # a container without a stream bit rate
        noise = ["-f", "lavfi", "-i", "testsrc2=s=128x96:r=25:d=4,noise=alls=40:allf=t", "-c:v", "mpeg2video"]
        command = [
            ffmpeg_path(),
            "-loglevel",
            "error",
            *noise,
            "-b:v",
            f"{kilobits}k",
            "-maxrate",
            f"{kilobits}k",
        ]
        subprocess.run([*command, "-bufsize", "100k", str(video)], check=True, timeout=60)
        rates.append(probe_video(str(video), LIMITS).bit_rate)
    assert rates[1] > 1.3 * rates[0]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage a file: bytes flipped, end cut off, blocks shuffled, or a span overwritten."""
    harm, out = rng.choice(["flip", "cut", "shuffle", "overwrite"]), bytearray(data)
    if harm == "flip":
        # headers are at both ends: damage there matters most
        for _ in range(rng.choice([1, 5, 50])):
            out[
                rng.choice(
                    [rng.randrange(len(out)), rng.randrange(min(2000, len(out))), -1 - rng.randrange(2000)]
                )
            ] ^= 1 << rng.randrange(8)
    elif harm == "cut":
        out = out[: rng.randrange(len(out))]
    elif harm == "shuffle":
        size = rng.choice([64, 1024, 8192])
        pieces = [out[i : i + size] for i in range(0, len(out), size)]
        rng.shuffle(pieces)
        out = bytearray().join(pieces)
    else:
        start = rng.randrange(len(out))
        stretch = out[start : start + rng.choice([4, 64, 4096])]
        out[start : start + len(stretch)] = rng.choice(
            [bytes(len(stretch)), b"\xff" * len(stretch), rng.randbytes(len(stretch))]
        )
    return bytes(out)


@pytest.mark.slow
def test_two_hundred_damaged_videos_give_facts_or_a_one_line_error(
    videos: dict[str, Path], tmp_path: Path
) -> None:
    rng, ends, slowest = random.Random(11), Counter[str](), 0.0
    for index in range(200):
        ending = list(CODECS)[index % len(CODECS)]
        path = tmp_path / f"{index}.{ending}"
        path.write_bytes(damaged(videos[ending].read_bytes(), rng))
        began = time.monotonic()
        probed = result_or_error(probe_video, str(path), LIMITS)
        if isinstance(probed, UserError):
            assert "\n" not in str(probed)
            ends[probed.kind] += 1
        else:
            ends["facts"] += 1
        slowest = max(slowest, time.monotonic() - began)
        if isinstance(probed, Probe) and index % 3 == 0:
            check_decoding(path, probed, tmp_path)
    assert sum(ends.values()) == 200
    assert set(ends) <= {
        "facts",
        "not-a-video",
        "no-video",
        "decode-failed",
        "too-large",
        "too-long",
        "memory",
    }
    assert ends["facts"] >= 50
    assert ends["not-a-video"] >= 20
    assert slowest < LIMITS.probe_seconds


def result_or_error(what: Callable[..., Any], *arguments: Any) -> Any:
    """The return value, or the UserError that was raised; other exceptions propagate."""
    try:
        return what(*arguments)
    except UserError as error:
        return error


def check_decoding(path: Path, probed: Probe, folder: Path) -> None:
    """A damaged video that opens gives frames of the right size and audio, or a one-line error."""
    limits = LimitConfig(max_duration_s=20)
    frames = result_or_error(lambda: list(decode_frames(str(path), probed, 48, 25, None, limits)))
    if isinstance(frames, UserError):
        assert frames.kind in ("decode-failed", "too-large")
    else:
        assert len(frames) <= 20 * 16
        assert {max(frame.shape[:2]) for frame in frames} == {48}
    audio = result_or_error(decode_audio, str(path), probed, folder / "audio", limits)
    assert audio.kind == "decode-failed" if isinstance(audio, UserError) else audio.duration_s <= 20


def test_probes_are_answered_by_one_process(videos: dict[str, Path]) -> None:
    path = str(videos["mp4"])
    first, child = probe_video(path, LIMITS), child_pid()
    assert [probe_video(path, LIMITS) for _ in range(10)] == [first] * 10
    assert child_pid() == child


def test_file_that_hangs_the_server_times_out_and_the_next_is_probed(
    videos: dict[str, Path], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it blocks until a writer comes
    began = time.monotonic()
    with pytest.raises(UserError, match="probe_seconds") as caught:
        probe_video(str(tmp_path / "pipe.mp4"), LimitConfig(probe_seconds=0.5))
    assert caught.value.kind == "timeout"
    assert time.monotonic() - began < 5
    assert probe_video(str(videos["mp4"]), LIMITS).width == 96


def test_killed_server_is_replaced(videos: dict[str, Path]) -> None:
    probe_video(str(videos["mp4"]), LIMITS)
    child = child_pid()
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert probe_video(str(videos["mp4"]), LIMITS).width == 96
    assert child_pid() != child


def test_parallel_threads_get_their_own_answers(videos: dict[str, Path]) -> None:
    codecs: dict[str, str] = {}

    def ask(ending: str) -> None:
        codecs[ending] = probe_video(str(videos[ending]), LIMITS).video_codec

    threads = [threading.Thread(target=ask, args=[ending]) for ending in CODECS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codecs == {
        "mp4": "h264",
        "mov": "mpeg4",
        "mkv": "h264",
        "webm": "vp8",
        "avi": "mjpeg",
        "mpg": "mpeg1video",
        "ts": "mpeg2video",
        "flv": "flv",
    }


def test_too_little_memory_is_an_error(videos: dict[str, Path]) -> None:
    with pytest.raises(UserError):
        probe_video(str(videos["mp4"]), LimitConfig(memory_gb=0.01))
    assert probe_video(str(videos["mp4"]), LIMITS).width == 96


def child_pid() -> int:
    """Process id of this process's probe server."""
    mine = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    children = [int(pid) for path in mine for pid in path.read_text().split()]
    return next(
        pid
        for pid in children
        if b"uniavgen.ingest.io.probe_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


PROBE_IN_CURRENT_FOLDER = """
import sys
from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io.probe_client import probe_video
print(probe_video(sys.argv[1], LimitConfig()).width)
"""


@pytest.mark.parametrize("safe_path", ["", "1"])
def test_probe_server_imports_nothing_from_the_current_folder(
    videos: dict[str, Path], tmp_path: Path, safe_path: str
) -> None:
    folder = make_hostile_folder(tmp_path / "home")
    for name in ("av", "json", "select", "re"):
        (folder / f"{name}.py").write_text(f"raise SystemExit('imported {name}.py')\n")
    environment = {**os.environ, "PYTHONSAFEPATH": safe_path}
    script = tmp_path / "script.py"
    script.write_text(PROBE_IN_CURRENT_FOLDER)
    command = [sys.executable, str(script), str(videos["mp4"])]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("96", "")
    assert imported_names(folder) == []


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_broken_library_of_the_prober_is_found_before_any_source(
    share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package whose shared library is cut off: an error at 0, SIGBUS at half."""
    package = importlib.util.find_spec("av")
    assert package is not None
    assert package.origin is not None
    whole = Path(package.origin).parent
    (tmp_path / "av.libs").symlink_to(whole.with_name("av.libs"))
    (tmp_path / "av").mkdir()
    for path in whole.iterdir():
        (tmp_path / "av" / path.name).symlink_to(path)
    broken = tmp_path / "av" / next(whole.glob("buffer.*.so")).name
    data = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(data[: int(len(data) * share)])
    check_prober()
    monkeypatch.setattr(probe_client, "_running", None)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="files cannot be opened") as caught:
        check_prober()
    assert caught.value.kind == "machine-fault"
    assert "\n" not in str(caught.value)
