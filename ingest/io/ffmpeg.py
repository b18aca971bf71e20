"""ffmpeg, kept on a short lead: every decoder is a child process with a wall-clock limit and an address-space limit.

Goes in: a path and what shall become of it. Comes out: bytes, or files. A child reads one local file in a named container,
never another file and never the network. Raises UserError (kinds: no-ffmpeg, timeout, memory; and what the caller names).
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import IO, Any

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io.probe_server import DEMUXERS
from uniavgen.ingest.io.uris import printable
from uniavgen.shards.errors import UserError

SEEK_MARGIN_S = 10.0
"""A seek goes this far ahead of the asked place and drops exactly: some containers land seconds beside it."""


@lru_cache(maxsize=1)
def ffmpeg_path() -> str:
    """The ffmpeg on PATH, else the one inside the imageio-ffmpeg wheel. Raises UserError where there is neither."""
    on_path = shutil.which("ffmpeg")
    if on_path:
        return on_path
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise UserError(
            "ffmpeg is missing", hint="install ffmpeg, or pip install imageio-ffmpeg", kind="no-ffmpeg"
        ) from error


def open_input(path: str, limits: LimitConfig, **options: Any) -> Any:
    """A file as the input of a graph of ffmpeg-python: nothing but this file, no container that names others."""
    import ffmpeg

    return ffmpeg.input(
        f"file:{path}",
        protocol_whitelist="file",
        format_whitelist=DEMUXERS,
        max_pixels=limits.max_pixels,
        threads=limits.decoder_threads,
        **options,
    )


def open_input_at(path: str, start_s: float, limits: LimitConfig) -> tuple[Any, float]:
    """The input from shortly before `start_s`, and what its clock shows at `start_s`."""
    if start_s <= SEEK_MARGIN_S:
        return open_input(path, limits), start_s  # not even a seek to 0: in an FLV it lands seconds later
    # the clock is kept: a container may count time in whole frames, and a clock set anew at the seek would be rounded to them
    kept = {"copyts": None, "start_at_zero": None}
    return open_input(path, limits, ss=f"{start_s - SEEK_MARGIN_S:.6f}", **kept), start_s


def run_graph(graph: Any, path: str, duration_s: float, limits: LimitConfig, what: str, kind: str) -> bytes:
    """Run a graph to its end and return what it wrote to its pipe. Raises UserError(`what`, kind=`kind`) if it fails."""
    with graph_child(graph, duration_s, limits) as child:
        data = child.read()
    child.check(path, what, kind)
    return data


@contextmanager
def graph_child(graph: Any, duration_s: float, limits: LimitConfig) -> Iterator[Child]:
    """A running ffmpeg, whose time limit grows with the seconds of video that it has to decode."""
    import ffmpeg

    command: list[str] = ffmpeg.compile(graph, cmd=ffmpeg_path(), overwrite_output=True)
    command = [command[0], "-hide_banner", "-loglevel", "error", "-nostdin", *command[1:]]
    with bounded_child(command, limits.decode_seconds + limits.decode_factor * duration_s, limits) as child:
        yield child


STARVED = ("Cannot allocate memory", "pthread_create() failed", "ff_frame_thread_encoder_init failed")
"""What ffmpeg says where its memory ends."""

NO_PICTURE = "get_buffer() failed"
"""What ffmpeg says where its memory ends, and also of a picture whose stated size is damaged; then it says that too."""


class Child:
    """A running decoder: what it writes, and once it has ended its exit code and its last words."""

    def __init__(self, command: list[str], log: IO[bytes]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        self.log = log
        self.code = 0
        self.complaint = ""

    def read(self, size: int = -1) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(size)

    def finish(self) -> None:
        """Close the pipe, so that one who still writes for nobody ends; wait; keep code and last words."""
        assert self.process.stdout is not None
        self.process.stdout.close()
        try:
            self.code = self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.code = self.process.wait()
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 4096))
        lines = self.log.read().decode("utf-8", "replace").strip().splitlines()
        # ffmpeg names the cause first and its consequences after it
        self.complaint = (lines[0] if lines else f"exit code {self.code}")[:200]
        said = "\n".join(lines)
        self.starved = any(sign in said for sign in STARVED) or (
            NO_PICTURE in said and "invalid" not in said.lower()
        )

    def check(self, path: str, what: str, kind: str) -> None:
        """Raise UserError if the child ended badly: `what` and its complaint, or that it met its memory limit."""
        if self.code and "No space left" in self.complaint:
            raise UserError("the disk is full", where=printable(path), kind="no-space")
        if self.starved:  # it may go on without the pictures that found no room, and call that a success
            hint = "raise limits.memory_gb"
            raise UserError(
                "decoding needs more memory than its limit", where=printable(path), hint=hint, kind="memory"
            )
        if self.code:
            raise UserError(f"{what}: {self.complaint}", where=printable(path), kind=kind)


@contextmanager
def bounded_child(command: list[str], seconds: float, limits: LimitConfig) -> Iterator[Child]:
    """A bounded child process; leaving the block ends it. Raises UserError (timeout) when its time was up."""
    expired = threading.Event()
    # a file takes the complaints: a pipe that nobody drains would stop a decoder that complains a lot
    with tempfile.TemporaryFile() as log:
        # the shell sets the limits before the decoder is there: set from outside, they might come too late; that of processor
        # time is for a decoder whose worker is killed, and with it the one who watches the clock
        most_s = math.ceil(seconds) * (os.cpu_count() or 1)
        limited = f'ulimit -v {int(limits.memory_gb * 2**20)}; ulimit -t {most_s}; exec "$0" "$@"'
        child = Child(["/bin/sh", "-c", limited, *command], log)

        def expire() -> None:
            expired.set()
            child.process.kill()

        timer = threading.Timer(seconds, expire)
        timer.start()
        try:
            yield child
        finally:
            timer.cancel()
            child.finish()
    if expired.is_set():
        raise UserError(
            f"decoding took longer than {seconds:.0f} s", hint="raise limits.decode_seconds", kind="timeout"
        )
