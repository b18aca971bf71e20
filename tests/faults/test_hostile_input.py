"""Hostile files: each ends within time and memory limits, opens no other file, and names its failure.

Two canaries detect access: a named pipe that notices when it is opened for reading, and a listener on the
loopback. One test shows that a plain ffmpeg does reach them.
"""

import os
import resource
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from paths import ROOT

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.io.media import decode_audio, decode_frames, decode_shot_frames
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.records import Probe
from uniavgen.shards.errors import UserError

LIMITS = LimitConfig()


def render(target: Path, *arguments: str) -> Path:
    command = [ffmpeg_path(), "-hide_banner", "-loglevel", "error", "-y", *arguments, str(target)]
    subprocess.run(command, check=True, timeout=120)
    return target


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a test pattern with a tone."""
    inputs = (
        "-f",
        "lavfi",
        "-i",
        "testsrc=s=96x64:r=25:d=2",
        "-f",
        "lavfi",
        "-i",
        "sine=d=2",
        "-pix_fmt",
        "yuv420p",
    )
    return render(tmp_path_factory.mktemp("video") / "video.mp4", *inputs)


class Canaries:
    """A named pipe and a listener that record whether they were accessed."""

    def __init__(self, folder: Path) -> None:
        self.pipe = folder / "canary.ts"
        os.mkfifo(self.pipe)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.accessed: set[str] = set()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=watch, daemon=True) for watch in (self._watch_pipe, self._watch_listener)
        ]
        for thread in self._threads:
            thread.start()

    def _watch_pipe(self) -> None:
        while not self._over.wait(0.005):
            try:  # a pipe can be opened to write only while somebody reads it
                os.close(os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK))
                self.accessed.add("file")
            except OSError:
                continue

    def _watch_listener(self) -> None:
        self.listener.settimeout(0.05)
        while not self._over.is_set():
            try:
                self.listener.accept()[0].close()
                self.accessed.add("network")
            except OSError:
                continue

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.listener.close()


@pytest.fixture
def canaries(tmp_path: Path) -> Iterator[Canaries]:
    found = Canaries(tmp_path)
    yield found
    found.close()


def probe_and_decode(path: Path, folder: Path, limits: LimitConfig = LIMITS) -> str:
    """Probe a file, decode its audio and its frames; returns the first failure's kind, or ""."""
    facts = result_or_error(probe_video, str(path), limits)
    shape = Probe(2.0, 96, 64, 25.0, "", "", True, audio_stream=1) if isinstance(facts, UserError) else facts
    ends = [
        facts,
        result_or_error(decode_audio, str(path), shape, folder / "sound.raw", limits),
        result_or_error(lambda: list(decode_frames(str(path), shape, 64, 25, folder / "tiny.raw", limits))),
        result_or_error(decode_shot_frames, str(path), shape, 25, folder / "tiny.raw", limits),
    ]
    errors = [end for end in ends if isinstance(end, UserError)]
    assert not [str(error) for error in errors if "\n" in str(error) or not error.kind]
    return errors[0].kind if errors else ""


def result_or_error(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result, or the UserError that was raised; any other exception is not caught."""
    try:
        return function(*arguments)
    except UserError as error:
        return error


SCRIPTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{pipe}\n#EXTINF:1,\nhttp://{address}/a.ts\n#EXT-X-ENDLIST\n",
    "script.mp4": "ffconcat version 1.0\nfile '{pipe}'\nfile 'http://{address}/a.ts'\n",
    "stream.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 9 RTP/AVP 33\na=control:rtsp://{address}/\n",
    "rooms.mpd": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT2S">'
    "<Period><BaseURL>http://{address}/</BaseURL><AdaptationSet mimeType='video/mp4'>"
    "<Representation id='1' bandwidth='1'>"
    "<BaseURL>{pipe}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "address.mp4": "http://{address}/a.mp4\n",
    "playlist.mov": "RTSPtextrtsp://{address}/a.mov\n",
    "picture.mp4": "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><image href='file://{pipe}'/></svg>",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_file_that_names_other_files_opens_none(tmp_path: Path, canaries: Canaries, name: str) -> None:
    (tmp_path / "inner").mkdir()
    trap = tmp_path / "inner" / name
    trap.write_text(SCRIPTS[name].format(pipe=canaries.pipe, address=canaries.address))
    assert probe_and_decode(trap, tmp_path) == "not-a-video"
    time.sleep(0.1)
    assert canaries.accessed == set()


def test_canaries_detect_a_decoder_that_follows_references(tmp_path: Path, canaries: Canaries) -> None:
    for name, follow in (
        ("list.m3u8", ["-protocol_whitelist", "file,http,tcp"]),
        ("script.mp4", ["-f", "concat", "-safe", "0"]),
    ):
        trap = tmp_path / name
        trap.write_text(SCRIPTS[name].format(pipe=canaries.pipe, address=canaries.address))
        allow = ["-allowed_extensions", "ALL", "-extension_picky", "0"] if name == "list.m3u8" else []
        command = [ffmpeg_path(), "-loglevel", "error", *follow, *allow, "-i", str(trap), "-f", "null", "-"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as follower:
            deadline = time.monotonic() + 10
            while "file" not in canaries.accessed and time.monotonic() < deadline:
                time.sleep(0.01)
            follower.kill()
        assert "file" in canaries.accessed
        canaries.accessed.discard("file")


def atom(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + kind + body


def with_external_data(data: bytes, folder: str, name: str) -> bytes:
    """A QuickTime file in which every `dref` refers to media in another file (an alias record)."""
    path = f"{folder}/{name}".encode()
    record = (
        bytes(10)
        + bytes([3])
        + b"vol".ljust(27, b"\0")
        + bytes(12)
        + bytes([len(name)])
        + name.encode().ljust(63, b"\0")
    )
    record += bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    for kind, text in ((2, path), (18, path)):
        record += struct.pack(">hh", kind, len(text)) + text + bytes(len(text) % 2)
    record += struct.pack(">hh", -1, 0)
    reference = atom(
        b"dref", bytes(4) + struct.pack(">I", 1) + atom(b"alis", bytes(4) + record.ljust(160, b"\0"))
    )

    def with_reference(atoms: bytes) -> bytes:
        out, at = b"", 0
        while at + 8 <= len(atoms):
            size, kind = struct.unpack(">I4s", atoms[at : at + 8])
            body = atoms[at + 8 : at + size]
            if kind == b"dref":
                out += reference
            else:
                out += atom(
                    kind,
                    with_reference(body) if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf") else body,
                )
            at += size
        return out

    # the index is behind the media, so offsets into the media stay right
    return with_reference(data)


def test_external_media_reference_is_not_followed(tmp_path: Path, video: Path, canaries: Canaries) -> None:
    trap = tmp_path / "trap.mov"
    trap.write_bytes(with_external_data(video.read_bytes(), str(tmp_path), canaries.pipe.name))
    probe_and_decode(trap, tmp_path)
    time.sleep(0.1)
    assert canaries.accessed == set()
    # with its options set, ffmpeg follows the reference
    command = [
        ffmpeg_path(),
        "-loglevel",
        "error",
        "-enable_drefs",
        "1",
        "-use_absolute_path",
        "1",
        "-i",
        str(trap),
    ]
    with subprocess.Popen(
        [*command, "-f", "null", "-"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as follower:
        deadline = time.monotonic() + 10
        while "file" not in canaries.accessed and time.monotonic() < deadline:
            time.sleep(0.01)
        follower.kill()
    assert "file" in canaries.accessed


def test_attachments_are_not_extracted(tmp_path: Path, video: Path, canaries: Canaries) -> None:
    (tmp_path / "note.txt").write_text(f"file://{canaries.pipe} http://{canaries.address}/")
    attached = ("-attach", str(tmp_path / "note.txt"), "-metadata:s:t", "mimetype=text/plain", "-c", "copy")
    trap = render(tmp_path / "trap.mkv", "-i", str(video), *attached)
    (work := tmp_path / "work").mkdir()
    assert probe_and_decode(trap, work) == ""
    assert canaries.accessed == set()
    assert {path.name for path in work.iterdir()} == {"sound.raw", "tiny.raw"}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_system_calls_show_no_other_file_and_no_connection(tmp_path: Path, video: Path) -> None:
    trap = tmp_path / "trap.m3u8"
    trap.write_text(SCRIPTS["list.m3u8"].format(pipe="/etc/hostname", address="127.0.0.1:9"))
    program = (
        "import sys; from pathlib import Path\n"
        "sys.path[:0] = ['tests/faults', 'tests/factories']; import test_hostile_input as t\n"
        f"for name in ({str(video)!r}, {str(trap)!r}):\n"
        f"    t.probe_and_decode(Path(name), Path({str(tmp_path)!r}))"
    )
    calls = "trace=open,openat,openat2,creat,connect,sendto,execve"
    command = [
        "strace",
        "-f",
        "-qq",
        "-s",
        "4096",
        "-e",
        calls,
        "-o",
        str(tmp_path / "calls"),
        sys.executable,
        "-c",
        program,
    ]
    subprocess.run(command, check=True, cwd=ROOT, timeout=120)
    lines = (tmp_path / "calls").read_text().splitlines()
    decoders = {
        line.split()[0]
        for line in lines
        if "execve(" in line and Path(line.split('"')[1]).name.startswith("ffmpeg")
    }
    assert len(decoders) >= 6
    opened = {
        line.split('"')[1]
        for line in lines
        if line.split()[0] in decoders and "open" in line and "ENOENT" not in line
    }
    system = ("/lib", "/usr", "/proc", "/sys", "/dev", "/etc/ld.so", "/etc/ssl")
    ours = {Path(name).name for name in opened if not name.startswith(system)}
    assert ours - {Path(ffmpeg_path()).name, "sh"} == {"video.mp4", "trap.m3u8", "sound.raw.part", "tiny.raw"}
    # no other process opens the named file or a connection either
    assert not [line for line in lines if "/etc/hostname" in line and "execve" not in line]
    assert not [line for line in lines if "AF_INET" in line]


def png(width: int, height: int, bits: int = 1) -> bytes:
    """A black PNG: 1 bit per pixel (16 megapixels are 2 kB), or 64 bits per pixel (RGBA, 16 bits each)."""
    depth, colours = {1: (1, 0), 64: (16, 6)}[bits]

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    rows = bytes((1 + (width * bits + 7) // 8) * 100)
    body = b"".join([packer.compress(rows) for _ in range(height // 100)]) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)),
            chunk(b"IDAT", body),
            chunk(b"IEND", b""),
        ]
    )


def png_video(png_frame: bytes, target: Path, declared: int, frames: int) -> Path:
    """A video of equal PNG frames whose header declares `declared` pixels a side."""
    with av.open(str(target), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = declared, declared, "gray"
        container.start_encoding()
        for index in range(frames):
            packet = av.Packet(png_frame)
            packet.stream, packet.pts, packet.dts, packet.time_base = (
                stream,
                index * 512,
                index * 512,
                stream.time_base,
            )
            packet.is_keyframe = True
            container.mux(packet)
    return target


def patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    """`value` written `offset` bytes after the first `mark`."""
    at = data.index(mark) + offset
    return data[:at] + value + data[at + len(value) :]


BOMBS: dict[str, tuple[Callable[[Path, Path], Path], LimitConfig, set[str]]] = {
    "declared gigapixel": (
        lambda video, to: png_video(png(40_000, 40_000), to / "a.mov", 16_000, 1),
        LIMITS,
        {"too-large"},
    ),
    "undeclared gigapixel": (
        lambda video, to: png_video(png(40_000, 40_000), to / "a.mov", 64, 1),
        LIMITS,
        {"too-large"},
    ),
    "undeclared 81 megapixels": (
        lambda video, to: png_video(png(9_000, 9_000), to / "a.mov", 64, 3),
        LIMITS,
        {"too-large"},
    ),
    "duration of a hundred years": (
        lambda video, to: write(
            to / "a.mkv", patched(mkv(video, to), b"\x44\x89\x88", 3, struct.pack(">d", 3.2e12))
        ),
        LIMITS,
        {"too-long"},
    ),
    "negative duration": (
        lambda video, to: write(
            to / "a.mkv", patched(mkv(video, to), b"\x44\x89\x88", 3, struct.pack(">d", -5e3))
        ),
        LIMITS,
        {""},
    ),
    "duration NaN": (
        lambda video, to: write(
            to / "a.mkv", patched(mkv(video, to), b"\x44\x89\x88", 3, struct.pack(">d", float("nan")))
        ),
        LIMITS,
        {"", "too-long"},
    ),
    "two billion frames per second": (
        lambda video, to: write(
            to / "a.avi", patched(avi(video, to), b"strh", 28, struct.pack("<II", 1, 0x7FFFFFFF))
        ),
        LIMITS,
        {"", "not-a-video", "decode-failed"},
    ),
    "index out of range": (
        lambda video, to: write(
            to / "a.mp4", patched(video.read_bytes(), b"stco", 8, struct.pack(">I", 0x7FFFFFF0) * 40)
        ),
        LIMITS,
        {"", "not-a-video", "decode-failed"},
    ),
    "table of four billion entries": (
        lambda video, to: write(
            to / "a.mp4", patched(video.read_bytes(), b"stsz", 8, b"\0\0\0\0\xff\xff\xff\xff")
        ),
        LIMITS,
        {"", "not-a-video", "decode-failed", "memory"},
    ),
    "atom longer than the file": (
        lambda video, to: write(to / "a.mp4", patched(video.read_bytes(), b"moov", -4, b"\x7f\xff\xff\xff")),
        LIMITS,
        {"", "not-a-video"},
    ),
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def mkv(video: Path, folder: Path) -> bytes:
    return render(folder / "plain.mkv", "-i", str(video), "-c", "copy").read_bytes()


def avi(video: Path, folder: Path) -> bytes:
    return render(folder / "plain.avi", "-i", str(video), "-c:v", "mpeg4", "-c:a", "mp2").read_bytes()


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_costs_bounded_time_and_memory_and_is_named(tmp_path: Path, video: Path, name: str) -> None:
    make, limits, kinds = BOMBS[name]
    bomb = make(video, tmp_path)
    assert bomb.stat().st_size < 2_000_000
    began = time.monotonic()
    assert probe_and_decode(bomb, tmp_path, limits) in kinds
    assert time.monotonic() - began < limits.probe_seconds
    largest_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    assert largest_kib < limits.memory_gb * 2**20
    assert sum(path.stat().st_size for path in tmp_path.glob("*.raw*")) < 5_000_000


def test_frame_beyond_the_memory_limit_names_the_limit(tmp_path: Path) -> None:
    # one frame takes 162 MB: the decoder and its threads start below the limit, the next frame exceeds it
    bomb = png_video(png(4_500, 4_500, 64), tmp_path / "a.mov", 4_500, 4)
    assert bomb.stat().st_size < 2_000_000
    facts = probe_video(str(bomb), LIMITS)
    with pytest.raises(UserError, match="limits.memory_gb") as caught:
        list(decode_frames(str(bomb), facts, 64, 25, None, LimitConfig(memory_gb=0.4)))
    assert caught.value.kind == "memory"


@pytest.mark.slow
def test_million_tiny_frames_stop_at_the_limits(tmp_path: Path) -> None:
    one = render(
        tmp_path / "one.mkv", "-f", "lavfi", "-i", "color=s=16x16:r=1000:d=10", "-c:v", "mpeg4", "-g", "1000"
    )
    million = render(tmp_path / "million.mkv", "-stream_loop", "99", "-i", str(one), "-c", "copy")
    found = probe_video(str(million), LIMITS)
    assert found.duration_s * found.fps == pytest.approx(1e6, rel=0.01)
    with pytest.raises(UserError) as caught:
        probe_video(str(million), LimitConfig(max_duration_s=600))
    assert caught.value.kind == "too-long"
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        list(
            decode_frames(
                str(million),
                found,
                64,
                25,
                tmp_path / "tiny.raw",
                LimitConfig(decode_seconds=1, decode_factor=0.0),
            )
        )
    assert caught.value.kind == "timeout"
    assert time.monotonic() - began < 6
    few = LimitConfig(max_duration_s=20)
    assert len(list(decode_frames(str(million), found, 64, 25, tmp_path / "tiny.raw", few))) == 320
    assert (tmp_path / "tiny.raw").stat().st_size == 20 * 25 * 48 * 27 * 3


def test_gap_in_timestamps_yields_at_most_the_longest_allowed_source(tmp_path: Path, video: Path) -> None:
    # two seconds, then one more second after eleven days: the gap would be 15 million frames
    late = render(tmp_path / "late.mkv", "-i", str(video), "-c", "copy", "-output_ts_offset", "1000000")
    (tmp_path / "list").write_text(f"file '{video}'\nfile '{late}'\n")
    gap = render(
        tmp_path / "gap.mkv",
        "-f",
        "concat",
        "-safe",
        "0",
        "-i",
        str(tmp_path / "list"),
        "-c",
        "copy",
        "-copyts",
    )
    limits = LimitConfig(max_duration_s=30)
    facts = Probe(4.0, 96, 64, 25.0, "h264", "aac", True, audio_stream=1)
    frames = sum(1 for _ in decode_frames(str(gap), facts, 64, 25, tmp_path / "tiny.raw", limits))
    assert frames <= 30 * 16
    assert decode_audio(str(gap), facts, tmp_path / "sound.raw", limits).duration_s <= 30
