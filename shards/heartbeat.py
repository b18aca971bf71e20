"""A file that says which process works on a folder, since when, and how far it is, for any shell or node.

The process rewrites it every few seconds. On the same machine a reader asks the system for the process; on
another machine a process that was silent for `SILENT_S` counts as dead. Clocks of the machines must agree.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from uniavgen.shards.atomic_files import replace_file

BEAT_S = 10.0
"""Longest pause between two writes."""
UPDATE_S = 1.0
"""Shortest pause between two writes."""
SILENT_S = 60.0
"""Silence after which a process on another machine is dead: six beats. Heuristic."""


class Heartbeat:
    """`with Heartbeat(path) as beat: beat.update(done=3)`. The file is removed at the end of the block.

    A killed process leaves its file. A file that cannot be written stops nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
        self._owner["process_started"] = _process_start(os.getpid())
        self._content: dict[str, Any] = {}
        self._written = 0.0
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def update(self, **content: Any) -> None:
        """Replace the content. It is written at once, or by the next beat if the last write is recent."""
        with self._lock:
            self._content = content
            if time.monotonic() - self._written >= UPDATE_S:
                self._write()

    def __enter__(self) -> Heartbeat:
        with self._lock, suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with self._lock:
                self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        document = {**self._owner, "time": time.time(), "content": self._content}
        with suppress(OSError):
            replace_file(self._path, json.dumps(document).encode() + b"\n")


@dataclass(frozen=True)
class Beat:
    """The last heartbeat. Times are seconds since 1970."""

    host: str
    pid: int
    started: float
    time: float
    process_started: float | None = None
    content: Mapping[str, Any] = field(default_factory=dict)

    def is_alive(self) -> bool:
        """Whether the process runs: exact on its machine, by its silence on another."""
        if self.host == socket.gethostname():
            return self.process_started is not None and _process_start(self.pid) == self.process_started
        return time.time() - self.time < SILENT_S

    def describe(self) -> dict[str, Any]:
        """State, machine and process for people and JSON. `since`: the start if alive, else the last sign."""
        alive = self.is_alive()
        return {
            "state": "alive" if alive else "dead",
            "since": self.started if alive else self.time,
            "last_sign": self.time,
            "host": self.host,
            "pid": self.pid,
        }


def read_beat(path: Path) -> Beat | None:
    """The last heartbeat in a file; None if there is none, or it is damaged."""
    try:
        document = json.loads(path.read_text())
        return Beat(**document)
    except (OSError, ValueError, TypeError):
        return None


def _process_start(pid: int) -> float | None:
    """When a process started; None if it does not run. Process numbers are reused, starts are not."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None
