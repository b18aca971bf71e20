"""Probe a video in a child process (`probe_server`) that may hang or crash without harm.

One server runs per process and is replaced if it dies. Its start costs 0.3 s, a question milliseconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any

from uniavgen.ingest.config import LimitConfig
from uniavgen.ingest.io.uris import printable
from uniavgen.ingest.records import Probe
from uniavgen.shards.errors import UserError

GRACE_S = 10.0
"""How much longer than the limit for one file an answer may take before the server is replaced."""

_lock = threading.Lock()
_running: tuple[int, subprocess.Popen[str]] | None = None


def probe_video(path: str, limits: LimitConfig) -> Probe:
    """Duration, size, codecs of a local file. Raises UserError.

    Kinds: not-a-video, no-video, decode-failed, too-large, too-long, timeout, memory, prober-died.
    """
    facts = _ask(path, limits)
    if "error" in facts:
        raise UserError(facts["error"], where=printable(path), kind=facts["kind"])
    probed = Probe(**facts)
    if probed.duration_s > limits.max_duration_s:
        raise UserError(
            f"{probed.duration_s:.0f} s long, the limit is {limits.max_duration_s:.0f} s",
            where=printable(path),
            hint="split it or raise limits.max_duration_s",
            kind="too-long",
        )
    return probed


def _ask(path: str, limits: LimitConfig) -> dict[str, Any]:
    """The server's answer, within `limits.probe_seconds` whatever the file does."""
    request = {
        "path": path,
        "max_pixels": limits.max_pixels,
        "seconds": limits.probe_seconds,
        "memory": int(limits.memory_gb * 2**30),
    }
    with _lock:
        server = _server()
        assert server.stdin is not None
        assert server.stdout is not None
        timer = threading.Timer(limits.probe_seconds + GRACE_S, server.kill)
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
    return facts


def _server() -> subprocess.Popen[str]:
    """This process's own server: one that was inherited through a fork belongs to the parent."""
    global _running
    if _running is None or _running[0] != os.getpid() or _running[1].poll() is not None:
        # -P: never import from the current folder, which may hold the user's own ingest.py or types.py
        command = [sys.executable, "-P", "-m", "uniavgen.ingest.io.probe_server"]
        pipe = subprocess.PIPE
        server = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        _running = (os.getpid(), server)
    return _running[1]
