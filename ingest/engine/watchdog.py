"""Keeps one source from costing more than itself: no step runs for ever, fills the memory or kills its worker again and again.

Goes in: a step about to run on a source. While it runs, a marker file says so; a thread ends the whole process when the step
takes too long or too much memory, after writing that verdict into the marker. Whoever gets the source next finds the marker:
with a verdict, or after two deaths without one, the step fails with a UserError (timeout, out-of-memory, worker-died).
Markers belong to one run: a driver that was killed leaves none that the next run would believe.
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
DEATHS = 2
"""Unexplained deaths of a worker in the same step of the same source before the source is given up (our choice)."""
GRACE_S = 10.0
"""Where native code holds the interpreter, the thread cannot run: this much later the process is ended from below it."""
ADVICE = {
    "timeout": "raise limits.step_seconds or limits.step_factor",
    "out-of-memory": "raise limits.step_memory_gb",
}


@dataclass
class Attempt:
    """What a marker says: the step that runs or ran, in which process, the deaths in it before, and why that one was ended."""

    step: str
    uri: str = ""
    process: int = 0
    deaths: int = 0
    verdict: str = ""
    message: str = ""


class Watchdog:
    """Watches the steps of one process; `folder` holds the markers of this run, for all workers to see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def watching(self, uri: str, step: str, seconds: float, memory_gb: float) -> Iterator[None]:
        """Run a step inside. Raises UserError at once where this source's earlier attempts forbid another."""
        # by step too: whoever tries again may have to fetch the source first, and must not forget what happened later
        marker = self.folder / f"{hashlib.sha256(f'{step} {uri}'.encode()).hexdigest()[:32]}.json"
        attempt = self._attempt(marker, step, uri)
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

    def _attempt(self, marker: Path, step: str, uri: str) -> Attempt:
        try:
            before = Attempt(**json.loads(marker.read_text()))
        except (OSError, ValueError, TypeError):
            return Attempt(step, uri, os.getpid())
        deaths = before.deaths + 1
        if before.verdict or deaths >= DEATHS:
            marker.unlink(missing_ok=True)
            kind = before.verdict or "worker-died"
            what = before.message or f"the worker died {deaths} times in this step"
            raise UserError(what, where=uri, hint=ADVICE.get(kind, ""), kind=kind)
        return Attempt(step, uri, os.getpid(), deaths)

    def _watch(
        self, marker: Path, attempt: Attempt, seconds: float, memory_gb: float, ended: threading.Event
    ) -> None:
        deadline = time.monotonic() + seconds
        while not ended.wait(POLL_S):
            resident = resident_bytes()
            if time.monotonic() > deadline:
                attempt.verdict, attempt.message = (
                    "timeout",
                    f"{attempt.step} took longer than {seconds:.0f} s",
                )
            elif resident > memory_gb * 2**30:
                used = f"{resident / 2**30:.1f} GiB resident, the limit is {memory_gb:g} GiB"
                attempt.verdict, attempt.message = "out-of-memory", f"{attempt.step} had {used}"
            if attempt.verdict:
                with suppress(OSError):  # without a marker it counts as an unexplained death
                    self._write(marker, attempt)
                _end_children()
                os._exit(1)

    def _write(self, marker: Path, attempt: Attempt) -> None:
        part = marker.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(attempt)))
        os.replace(part, marker)


def resident_bytes() -> int:
    """Memory of this process that is in RAM, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _end_children() -> None:
    """Decoders must not outlive the worker that reads them."""
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                os.kill(int(child), signal.SIGKILL)
