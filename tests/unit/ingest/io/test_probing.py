"""Opening unknown files: what is said of them is true, and nothing that a file does harms more than itself."""

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

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.io.media import decode_audio, decode_frames, probe
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
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A second of moving picture with a tone, in eight containers."""
    folder, found = tmp_path_factory.mktemp("films"), {}
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
        found[ending] = folder / f"film.{ending}"
        command = [ffmpeg_path(), "-loglevel", "error", *inputs, *codecs]
        subprocess.run([*command, "-strict", "-1", str(found[ending])], check=True, timeout=60)
    return found


@pytest.mark.parametrize("ending", CODECS)
def test_what_is_said_of_a_film_is_true(films: dict[str, Path], ending: str) -> None:
    found = probe(str(films[ending]), LIMITS)
    assert (found.width, found.height, found.fps, found.has_audio) == (96, 64, 25.0, True)
    assert found.duration_s == pytest.approx(1.0, abs=0.1)
    assert found.bytes == films[ending].stat().st_size
    assert 0 < found.bit_rate <= found.bytes * 8 / found.duration_s
    assert found.interlaced_ratio == 0.0


def test_the_bit_rate_follows_the_encoder_s(tmp_path: Path) -> None:
    rates = []
    for kilobits in (100, 400):
        film = tmp_path / f"{kilobits}.mkv"  # whose header says nothing of it
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
        subprocess.run([*command, "-bufsize", "100k", str(film)], check=True, timeout=60)
        rates.append(probe(str(film), LIMITS).bit_rate)
    assert rates[1] > 1.3 * rates[0]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One of four harms: bytes flipped, the end cut off, pieces shuffled, a stretch overwritten."""
    harm, out = rng.choice(["flip", "cut", "shuffle", "overwrite"]), bytearray(data)
    if harm == "flip":
        # headers stand at both ends, and there most harm is done
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
def test_two_hundred_damaged_films_all_end_in_facts_or_in_one_line(
    films: dict[str, Path], tmp_path: Path
) -> None:
    rng, ends, slowest = random.Random(11), Counter[str](), 0.0
    for index in range(200):
        ending = list(CODECS)[index % len(CODECS)]
        path = tmp_path / f"{index}.{ending}"
        path.write_bytes(mutated(films[ending].read_bytes(), rng))
        began = time.monotonic()
        found = tried(probe, str(path), LIMITS)
        if isinstance(found, UserError):
            assert "\n" not in str(found)
            ends[found.kind] += 1
        else:
            ends["facts"] += 1
        slowest = max(slowest, time.monotonic() - began)
        if isinstance(found, Probe) and index % 3 == 0:
            check_decoding(path, found, tmp_path)
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


def tried(what: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or the UserError that it raises; any other exception passes."""
    try:
        return what(*arguments)
    except UserError as error:
        return error


def check_decoding(path: Path, found: Probe, folder: Path) -> None:
    """A damaged film that opens gives some pictures of the right size and some sound, or one clear line."""
    limits = LimitConfig(max_duration_s=20)
    pictures = tried(lambda: list(decode_frames(str(path), found, 48, 25, None, limits)))
    if isinstance(pictures, UserError):
        assert pictures.kind in ("decode-failed", "too-large")
    else:
        assert len(pictures) <= 20 * 16
        assert {max(picture.shape[:2]) for picture in pictures} == {48}
    sound = tried(decode_audio, str(path), 1, folder / "sound", limits)
    assert sound.kind == "decode-failed" if isinstance(sound, UserError) else sound.duration_s <= 20


def test_a_question_costs_less_than_a_process_of_its_own(films: dict[str, Path]) -> None:
    path = str(films["mp4"])
    probe(path, LIMITS)
    began = time.monotonic()
    asked = [probe(path, LIMITS) for _ in range(10)]
    each = (time.monotonic() - began) / 10
    assert asked == [asked[0]] * 10
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import av"], check=True)
    assert each < (time.monotonic() - began) / 2


def test_a_file_that_hangs_the_reader_is_given_up_and_the_next_is_read(
    films: dict[str, Path], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it waits for a writer for ever
    began = time.monotonic()
    with pytest.raises(UserError, match="probe_seconds") as caught:
        probe(str(tmp_path / "pipe.mp4"), LimitConfig(probe_seconds=0.5))
    assert caught.value.kind == "timeout"
    assert time.monotonic() - began < 5
    assert probe(str(films["mp4"]), LIMITS).width == 96


def test_the_reader_is_replaced_when_it_is_killed(films: dict[str, Path]) -> None:
    probe(str(films["mp4"]), LIMITS)
    child = child_pid()
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert probe(str(films["mp4"]), LIMITS).width == 96
    assert child_pid() != child


def test_many_threads_get_each_their_own_answer(films: dict[str, Path]) -> None:
    codecs: dict[str, str] = {}

    def ask(ending: str) -> None:
        codecs[ending] = probe(str(films[ending]), LIMITS).video_codec

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


def test_too_little_memory_is_named(films: dict[str, Path]) -> None:
    with pytest.raises(UserError):
        probe(str(films["mp4"]), LimitConfig(memory_gb=0.01))
    assert probe(str(films["mp4"]), LIMITS).width == 96


def child_pid() -> int:
    """The process id of this process's reader."""
    mine = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    children = [int(pid) for path in mine for pid in path.read_text().split()]
    return next(
        pid
        for pid in children
        if b"uniavgen.ingest.io.probe_server" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
