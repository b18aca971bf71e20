"""Time and memory limits of a step, and an end to sources that kill their worker again and again.

A marker file names the step that runs. A thread ends the whole process when the step exceeds a limit, after
it has written that verdict into the marker. The worker that gets the source next reads the marker: after a
verdict, or after two deaths without one, the step fails with a UserError (timeout, out-of-memory,
worker-died). Markers belong to one run, so a killed driver leaves none that the next run would read.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from uniavgen.shards.errors import UserError

POLL_S = 0.2
MAX_DEATHS = 2
"""Unexplained worker deaths in the same step of the same source before the source fails. Heuristic."""
GRACE_S = 10.0
"""Extra seconds before the C-level timer ends a process whose native code blocks the Python thread."""
HINTS = {
    "timeout": "raise limits.step_seconds or limits.step_factor",
    "out-of-memory": "raise limits.step_memory_gb",
}


@dataclass
class Attempt:
    """Content of a marker: step, source, process, number of earlier deaths, and why the process was ended."""

    step: str
    uri: str = ""
    process: int = 0
    deaths: int = 0
    verdict: str = ""
    message: str = ""


class Watchdog:
    """Watches the steps of one process. `folder` holds the markers of this run, visible to all workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def watching(self, uri: str, step: str, seconds: float, memory_gb: float) -> Iterator[None]:
        """Run a step inside. Raises UserError at once if earlier attempts of this source rule out another."""
        # one marker per step: a retry may fetch the source first, which must not erase a later step's marker
        marker = self.folder / f"{hashlib.sha256(f'{step} {uri}'.encode()).hexdigest()[:32]}.json"
        attempt = self._next_attempt(marker, step, uri)
        self._write(marker, attempt)
        ended = threading.Event()
        watch = threading.Thread(
            target=self._watch, args=(marker, attempt, seconds, memory_gb, ended), daemon=True
        )
        watch.start()
        faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            ended.set()
            watch.join()
            marker.unlink(missing_ok=True)

    def _next_attempt(self, marker: Path, step: str, uri: str) -> Attempt:
        try:
            before = Attempt(**json.loads(marker.read_text()))
        except (OSError, ValueError, TypeError):
            return Attempt(step, uri, os.getpid())
        deaths = before.deaths + 1
        if before.verdict or deaths >= MAX_DEATHS:
            marker.unlink(missing_ok=True)
            kind = before.verdict or "worker-died"
            message = before.message or f"the worker died {deaths} times in this step"
            raise UserError(message, where=uri, hint=HINTS.get(kind, ""), kind=kind)
        return Attempt(step, uri, os.getpid(), deaths)

    def _watch(
        self, marker: Path, attempt: Attempt, seconds: float, memory_gb: float, ended: threading.Event
    ) -> None:
        deadline = time.monotonic() + seconds
        while not ended.wait(POLL_S):
            resident = resident_bytes()
            if time.monotonic() > deadline:
                attempt.verdict = "timeout"
                attempt.message = f"{attempt.step} took longer than {seconds:.0f} s"
            elif resident > memory_gb * 2**30:
                used = f"{resident / 2**30:.1f} GiB resident, the limit is {memory_gb:g} GiB"
                attempt.verdict, attempt.message = "out-of-memory", f"{attempt.step} had {used}"
            if attempt.verdict:
                with suppress(OSError):  # without a marker it counts as an unexplained death
                    self._write(marker, attempt)
                _kill_children()
                os._exit(1)

    def _write(self, marker: Path, attempt: Attempt) -> None:
        part = marker.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(attempt)))
        os.replace(part, marker)


def resident_bytes() -> int:
    """Resident memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _kill_children() -> None:
    """Decoders must not outlive the worker that reads from them."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
