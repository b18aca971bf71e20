"""Load the models of steps and use each once, in the process that needs them, before it takes a source.

A broken library or model fails every source, so it is found here, and is the machine's fault. An exception
says so itself. A library that kills the process says nothing: a marker file names the step whose models are
loaded, and the processes that come after count the dead ones that left theirs.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from uniavgen.ingest.engine.step import Step
from uniavgen.shards.errors import UserError
from uniavgen.shards.weights import damaged_files

LOADING = "loading"
"""Folder in the run directory that holds the markers."""

MAX_DEATHS = 2
"""Processes of this machine that may die while they load one step's models, before the run stops. Heuristic:
one of them may have been killed by somebody."""

LOADED = ".loaded"
"""Suffix of the marker of a step whose models were once loaded in this run: no library of its is broken."""


class ModelLoader:
    """Loads models in one process. `folder` holds the markers of this run, visible to all workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready: set[str] = set()

    def load(self, step: Step) -> None:
        """Load the step's models and use them once, unless that was done.

        Raises what the step raises, and UserError (worker-died) if `MAX_DEATHS` processes died here.
        """
        if step.name in self._ready:
            return
        if type(step).load is not Step.load:
            with self._marked(step.name):
                step.load()
                step.try_models()
        self._ready.add(step.name)

    @contextmanager
    def _marked(self, name: str) -> Iterator[None]:
        died = deaths(self._folder).get(name, 0)
        if died >= MAX_DEATHS:
            raise UserError(f"{died} workers died while they loaded its models", kind="worker-died")
        marker = self._folder / f"{name}.{platform.node()}.{os.getpid()}"
        marker.touch()
        try:
            yield
            marker.with_suffix(LOADED).touch()
        finally:
            marker.unlink(missing_ok=True)


def deaths(folder: Path) -> dict[str, int]:
    """Processes of this machine that died while they loaded models, by step; without steps whose models
    another process has loaded.
    """
    counts: dict[str, int] = {}
    host = platform.node()
    for marker in folder.glob(f"*.{escape(host)}.*"):
        process, name = marker.suffix[1:], marker.name.removesuffix(f".{host}{marker.suffix}")
        if process.isdigit() and not _is_alive(int(process)) and not marker.with_suffix(LOADED).exists():
            counts[name] = counts.get(name, 0) + 1
    return counts


def explained(error: Exception) -> str:
    """Why models could not be loaded, in one line. Names registered weights whose content is not theirs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    if damaged := [str(path) for path in damaged_files()]:
        return f"{reason}; damaged: {', '.join(damaged)} (delete it: it is fetched again)"
    return reason


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
