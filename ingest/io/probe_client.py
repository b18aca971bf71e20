"""Asks the process that opens unknown files (`uniavgen.ingest.io.probe_server`), which starts once per process and is replaced if it dies.

Goes in: a path and limits. Comes out: facts, or an error and its kind. Its start costs 0.3 s, a question milliseconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from typing import Any

from uniavgen.ingest.config import LimitConfig
from uniavgen.shards.errors import UserError

GRACE_S = 10.0
"""How much longer than the file's own limit an answer may take before the whole process is replaced."""

_lock = threading.Lock()
_running: tuple[int, subprocess.Popen[str]] | None = None


def ask(path: str, limits: LimitConfig) -> dict[str, Any]:
    """The facts of the file, or `error` and `kind`; answers within `limits.probe_seconds`, whatever the file does."""
    memory = int(limits.memory_gb * 2**30)
    request = {
        "path": path,
        "max_pixels": limits.max_pixels,
        "seconds": limits.probe_seconds,
        "memory": memory,
    }
    with _lock:
        child = _child()
        assert child.stdin is not None
        assert child.stdout is not None
        timer = threading.Timer(limits.probe_seconds + GRACE_S, child.kill)
        timer.start()
        try:
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        finally:
            timer.cancel()
        if not answer:
            child.kill()
            raise UserError("the process that opens files has ended", hint="run again", kind="prober-died")
    facts: dict[str, Any] = json.loads(answer)
    return facts


def _child() -> subprocess.Popen[str]:
    """This process's own: one that was inherited through a fork belongs to the parent."""
    global _running
    if _running is None or _running[0] != os.getpid() or _running[1].poll() is not None:
        command = [sys.executable, "-m", "uniavgen.ingest.io.probe_server"]
        pipe = subprocess.PIPE
        child = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        _running = (os.getpid(), child)
    return _running[1]
