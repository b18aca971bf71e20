"""Probe a video in a child process (`probe_server`) that may hang or crash without harm.

One server runs per process and is replaced if it dies. Its start costs 0.3 s, a question milliseconds.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.records import Probe
from uniavgen.shards.errors import UserError, printable

GRACE_S = 10.0
"""How much longer than the limit for one file an answer may take before the server is replaced."""

START_TIMEOUT_S = 60.0
"""Seconds in which a server must start and answer."""

LOWEST_BYTES_PER_S = 12_500
"""Bit rate (100 kbit/s) from which a file's size bounds its length."""

FLAC_BYTES_PER_S = 2 * 192_000
"""Most that a second of repaired audio takes: one channel of 16 bit."""

_lock = threading.Lock()
_running: tuple[int, subprocess.Popen[str]] | None = None


def probe_video(path: str, limits: LimitConfig, audio_track: str = "") -> Probe:
    """Streams, duration, size and codecs of a local file, which is read through once. Raises UserError.

    `audio_track` names a track as `ingest.sources.audio_track` does. Kinds: not-a-video, no-video,
    no-audio-track, decode-failed, too-large, too-long, timeout, memory, prober-died.
    """
    facts = _ask("describe", path, limits, limits.probe_seconds, audio_track=audio_track)
    candidates, turned = facts.pop("audio_candidates"), facts.pop("turned")
    _check_length(path, facts["duration_s"], limits)
    # a length may be wrong or unknown: the size bounds it for all but the lowest bit rates
    longest_s = max(facts["duration_s"], facts["bytes"] / LOWEST_BYTES_PER_S)
    seconds = limits.decode_seconds + limits.decode_factor * min(longest_s, limits.max_duration_s)
    request = {"video_stream": facts["video_stream"], "audio_candidates": candidates, "bytes": facts["bytes"]}
    whole = _ask("scan", path, limits, seconds, **request)
    whole.pop("sounding_s")
    largest = whole.pop("largest")
    if whole["frame_sizes"] > 1 and largest:
        facts["width"], facts["height"] = _shown_size(largest, turned)
    probed: Probe = TypeAdapter(Probe).validate_python(facts | whole)
    _check_length(path, probed.duration_s, limits)
    return probed


def check_prober() -> None:
    """Raise UserError (machine-fault) if the process that opens files does not work. It gets an empty one."""
    with tempfile.NamedTemporaryFile() as empty:
        try:
            _ask("describe", empty.name, LimitConfig(), START_TIMEOUT_S, audio_track="")
        except UserError as error:
            if error.kind == "not-a-video":
                return
            raise UserError(
                f"files cannot be opened: {error.what}",
                where=platform.node(),
                hint="python -m uniavgen.ingest.io.probe_server says why; pip install --force-reinstall av",
                kind="machine-fault",
            ) from error


def repair_video(path: str, probe: Probe, target: Path, limits: LimitConfig) -> Probe:
    """Write a repaired copy of a file to `target`; returns the facts of that copy. Raises UserError."""
    part = target.with_name(target.name + ".part")
    request = {
        "target": str(part),
        "video_stream": probe.video_stream,
        "audio_stream": probe.audio_stream,
        "mono": probe.mono,
        # FLAC may be larger than what it was decoded from
        "target_bytes": 2 * (probe.bytes or 0) + round(probe.duration_s * FLAC_BYTES_PER_S) + 2**20,
    }
    seconds = limits.decode_seconds + limits.decode_factor * probe.duration_s
    try:
        _ask("repair", path, limits, seconds, **request)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return repaired_facts(probe)


def repaired_facts(probe: Probe) -> Probe:
    """Facts of the repaired copy of a file."""
    audio = 1 if probe.audio_stream >= 0 else -1
    return replace(
        probe,
        video_stream=0,
        audio_stream=audio,
        start_s=None,
        clock_zero_s=None,
        mono="mix",
        streams=(),
        repairs=(),
    )


def _check_length(path: str, duration_s: float, limits: LimitConfig) -> None:
    if duration_s > limits.max_duration_s:
        raise UserError(
            f"{duration_s:.0f} s long, the limit is {limits.max_duration_s:.0f} s",
            where=printable(path),
            hint="split it or raise limits.max_duration_s",
            kind="too-long",
        )


def _shown_size(largest: list[int], turned: bool) -> tuple[int, int]:
    """The largest of several frame sizes, as even numbers, turned as the file says."""
    width, height = reversed(largest) if turned else largest
    return width // 2 * 2, height // 2 * 2


def _ask(task: str, path: str, limits: LimitConfig, seconds: float, **options: Any) -> dict[str, Any]:
    """The server's answer, within `seconds` whatever the file does.

    Raises UserError for one that says `error`.
    """
    request = {
        "task": task,
        "path": path,
        "max_pixels": limits.max_pixels,
        "seconds": seconds,
        "memory": int(limits.memory_gb * 2**30),
        **options,
    }
    with _lock:
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        timer = threading.Timer(seconds + GRACE_S, server.kill)
        timer.start()
        try:
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            answer = server.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            server.kill()
            raise UserError("the process that opens files died", hint="run again", kind="prober-died")
    facts: dict[str, Any] = json.loads(answer)
    if "error" in facts:
        raise UserError(facts["error"], where=printable(path), hint=facts.get("hint", ""), kind=facts["kind"])
    return facts


def _server() -> subprocess.Popen[str]:
    """This process's own server: one that was inherited through a fork belongs to the parent."""
    global _running
    if _running is None or _running[0] != os.getpid() or _running[1].poll() is not None:
        # -P: never import from the current folder, which may hold the user's own ingest.py or types.py
        command = [sys.executable, "-P", "-m", "uniavgen.ingest.io.probe_server"]
        pipe = subprocess.PIPE
        server = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        _running = (os.getpid(), server)
    return _running[1]
