"""Run ffmpeg in a subprocess with wall-clock, CPU and memory limits, on one local file and never on the
network.

Raises UserError (kinds: no-ffmpeg, broken-ffmpeg, timeout, memory, no-space, and the kind that a caller names
for a failed command).
"""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

from uniavgen.ingest.config import ON_PATH, PACKAGED, LimitConfig
from uniavgen.ingest.io.uris import DEMUXERS
from uniavgen.ingest.records import SEEK_MARGIN_S, Probe
from uniavgen.shards.errors import UserError, printable

OUT_OF_MEMORY = ("Cannot allocate memory", "pthread_create() failed", "ff_frame_thread_encoder_init failed")
"""Messages of ffmpeg at its memory limit."""

NO_FRAME_BUFFER = "get_buffer() failed"
"""Message of ffmpeg at its memory limit, but also for a frame with a damaged size; then it also says
"invalid"."""


PINNED_VERSION = "9.0.2"
"""Version of the pinned wheel's ffmpeg."""

START_TIMEOUT_S = 60.0
"""Seconds in which ffmpeg must say its version."""

LOADER_CODES = (126, 127)
"""Exit codes of the shell and of the dynamic loader for a program that cannot be started."""


@lru_cache
def ffmpeg_path(choice: str = PACKAGED) -> str:
    """The ffmpeg of a configuration (`limits.ffmpeg`): the pinned one of the imageio-ffmpeg wheel, the first
    on PATH, or a file.

    PATH has no influence on the pinned one. Raises UserError (no-ffmpeg).
    """
    if choice == PACKAGED:
        return _packaged_ffmpeg()
    program = shutil.which("ffmpeg" if choice == ON_PATH else os.path.expanduser(choice))
    if program is None:
        raise UserError(
            "there is no ffmpeg on PATH" if choice == ON_PATH else "this ffmpeg cannot be run",
            where=os.environ.get("PATH", "") if choice == ON_PATH else choice,
            hint="correct ingest.limits.ffmpeg; `packaged` is the one that is installed with uniavgen",
            kind="no-ffmpeg",
        )
    return os.path.abspath(program)


@lru_cache
def ffmpeg_version(choice: str = PACKAGED) -> str:
    """The version that an ffmpeg says of itself, as `9.0.2-17-g2a571b6068`. Raises UserError (no-ffmpeg,
    broken-ffmpeg).
    """
    program = ffmpeg_path(choice)
    try:
        done = subprocess.run([program, "-version"], capture_output=True, timeout=START_TIMEOUT_S)
        text = (done.stdout or done.stderr).decode("utf-8", "replace").strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        text = str(error)
    match = re.match(r"ffmpeg version n?(\S+)", text)
    if match is None:
        raise UserError(
            f"ffmpeg does not start: {text.splitlines()[0] if text else 'no message'}",
            where=program,
            hint="name a working one: --set ingest.limits.ffmpeg=packaged, or path, or a file",
            kind="broken-ffmpeg",
        )
    return match[1]


def ffmpeg_variant(limits: LimitConfig) -> str:
    """The version of the configured ffmpeg; "" for the pinned one, with which clips are cut by default."""
    version = ffmpeg_version(limits.ffmpeg)
    return "" if version.split("-")[0] == PINNED_VERSION else f"ffmpeg {version}"


def _packaged_ffmpeg() -> str:
    # not imageio_ffmpeg.get_ffmpeg_exe(): it prefers IMAGEIO_FFMPEG_EXE, and takes the one on PATH if the
    # wheel has none
    package = find_spec("imageio_ffmpeg")
    folders = package.submodule_search_locations if package else None
    binaries = sorted(Path(folder) / "binaries" for folder in folders or ())
    programs = [path for folder in binaries for path in sorted(folder.glob("ffmpeg-*"))]
    if not programs:
        raise UserError(
            "ffmpeg is missing",
            hint="pip install --force-reinstall imageio-ffmpeg, or name one: ingest.limits.ffmpeg=path",
            kind="no-ffmpeg",
        )
    return str(programs[0])


def on_file_clock(probe: Probe, limits: LimitConfig) -> Probe:
    """The probe, with `start_s` set where the configured ffmpeg may find another start than the pinned one.

    7.0 and older count the delay of an audio codec in Matroska as part of the file: their time 0 is 3 to 23
    ms early, so frames and audio come late.
    """
    if probe.start_s is None and ffmpeg_variant(limits):
        return replace(probe, start_s=probe.clock_zero_s)
    return probe


def open_input(path: str, probe: Probe, limits: LimitConfig, **options: Any) -> Any:
    """A file as the input of an ffmpeg-python graph.

    Protocols and containers that open other files are refused. Where `probe.start_s` is set, timestamps stay
    those of the file: ffmpeg would set the first one of each output to 0. The probe is one of
    `on_file_clock`.
    """
    import ffmpeg

    if probe.start_s is not None:
        options["copyts"] = None
    if probe.frame_sizes > 1:
        # else ffmpeg builds the graph anew at a change, and its filters pad from time 0 again
        options["reinit_filter:v"] = 0
    return ffmpeg.input(
        f"file:{path}",
        protocol_whitelist="file",
        format_whitelist=DEMUXERS,
        max_pixels=limits.max_pixels,
        threads=limits.decoder_threads,
        **options,
    )


def open_input_at(path: str, probe: Probe, start_s: float, limits: LimitConfig) -> tuple[Any, float]:
    """The input from shortly before `start_s`, and the input's timestamp at `start_s`."""
    probe = on_file_clock(probe, limits)
    clock_s = start_s + (probe.start_s or 0.0)
    if start_s <= SEEK_MARGIN_S:  # no seek at all: even one to 0 lands seconds late in an FLV
        return open_input(path, probe, limits), clock_s
    # timestamps are kept: a container may count time in whole frames, and timestamps restarted at the seek
    # would be rounded
    keep_timestamps: dict[str, Any] = {"copyts": None}
    if probe.start_s is None:
        keep_timestamps["start_at_zero"] = None
    return open_input(path, probe, limits, ss=f"{start_s - SEEK_MARGIN_S:.6f}", **keep_timestamps), clock_s


def run_graph(
    graph: Any, path: str, duration_s: float, limits: LimitConfig, message: str, kind: str
) -> bytes:
    """Run a graph to its end and return what it wrote to its pipe.

    Raises UserError(message, kind=kind) if it fails.
    """
    with graph_child(graph, duration_s, limits) as child:
        data = child.read()
    child.check(path, message, kind)
    return data


@contextmanager
def graph_child(graph: Any, duration_s: float, limits: LimitConfig) -> Iterator[Child]:
    """A running ffmpeg. Its time limit grows with the seconds of video that it has to decode."""
    import ffmpeg

    command: list[str] = ffmpeg.compile(graph, cmd=ffmpeg_path(limits.ffmpeg), overwrite_output=True)
    # one thread for filters: workers fill the cores, and dividing small frames among threads costs more CPU
    # time than most filters
    options = ["-hide_banner", "-loglevel", "error", "-nostdin", "-filter_complex_threads", "1"]
    command = [command[0], *options, *command[1:]]
    with bounded_child(command, limits.decode_seconds + limits.decode_factor * duration_s, limits) as child:
        yield child


class Child:
    """A running decoder: its output, and after its end its exit code and its error message."""

    def __init__(self, command: list[str], log: IO[bytes]) -> None:
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        self.log = log
        self.code = 0
        self.message = ""
        self.out_of_memory = False

    def read(self, size: int = -1) -> bytes:
        assert self.process.stdout is not None
        return self.process.stdout.read(size)

    def finish(self) -> None:
        """Close the pipe, so that a child that still writes ends; wait for it; keep its exit code and
        message.
        """
        assert self.process.stdout is not None
        self.process.stdout.close()
        try:
            self.code = self.process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.code = self.process.wait()
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 4096))
        text = self.log.read().decode("utf-8", "replace").strip()
        # ffmpeg prints the cause first, then its consequences
        self.message = (text.splitlines()[0] if text else f"exit code {self.code}")[:200]
        self.out_of_memory = any(sign in text for sign in OUT_OF_MEMORY) or (
            NO_FRAME_BUFFER in text and "invalid" not in text.lower()
        )

    def check(self, path: str, message: str, kind: str) -> None:
        """Raise UserError if the child failed: no-space, broken-ffmpeg, memory, else `message` with the
        child's own and `kind`.
        """
        if self.code in LOADER_CODES:
            raise UserError(f"ffmpeg does not start: {self.message}", kind="broken-ffmpeg")
        if self.code and "No space left" in self.message:
            raise UserError("the disk is full", where=printable(path), kind="no-space")
        if self.out_of_memory:  # ffmpeg may drop the frames that found no memory and still exit with 0
            raise UserError(
                "decoding needs more memory than its limit",
                where=printable(path),
                hint="raise limits.memory_gb",
                kind="memory",
            )
        if self.code:
            raise UserError(f"{message}: {self.message}", where=printable(path), kind=kind)


@contextmanager
def bounded_child(command: list[str], seconds: float, limits: LimitConfig) -> Iterator[Child]:
    """A child process with limits; leaving the block ends it.

    Raises UserError (timeout) when its time was over.
    """
    expired = threading.Event()
    # stderr goes to a file: a pipe that nobody reads would block a decoder with many messages
    with tempfile.TemporaryFile() as log:
        # the shell sets the limits before the decoder starts. The CPU limit ends a decoder whose worker, and
        # with it the timer below, was killed
        cpu_seconds = math.ceil(seconds) * (os.cpu_count() or 1)
        limited = f'ulimit -v {int(limits.memory_gb * 2**20)}; ulimit -t {cpu_seconds}; exec "$0" "$@"'
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
