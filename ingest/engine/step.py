"""What a step is, and how one process takes a source through the steps of a stage.

Goes in: a `SourceRecord`. Comes out: the same, with its results stored and its failure, if any, noted. An exception ends that
source alone. What is stored already under the same key is not measured again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.step_cache import Results
from uniavgen.ingest.engine.step_graph import ON_DEMAND, SPECS
from uniavgen.ingest.engine.watchdog import Watchdog
from uniavgen.ingest.io.uris import local_path
from uniavgen.ingest.records import Failure, Probe, SourceRecord
from uniavgen.shards.errors import UserError


class Step:
    """A step, or several that share one pass over the data. `gives` are its results' classes by step name."""

    name = ""
    """What failures and timings call it; empty: the name of the one thing that it gives."""
    gives: ClassVar[dict[str, type]] = {}

    def __init__(self, config: IngestConfig, scratch: Path, corpus_root: Path) -> None:
        """`scratch` is a folder for files that the run throws away."""
        self.config = config
        self.scratch = scratch
        self.corpus_root = corpus_root
        self.name = self.name or next(iter(self.gives))
        self.spent: dict[str, float] = {}
        """Of a shared pass: the last call's seconds by step name."""

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        """Raise UserError where a file that the step needs cannot be had: told once, before any worker starts."""

    def load(self, wanted: tuple[str, ...]) -> None:
        """Load what the wanted results take, unless it is loaded; this is no part of a source's time limit."""

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        """Measure. `wanted` are the names out of `gives` that are not stored already."""
        raise NotImplementedError

    def release(self, record: SourceRecord) -> None:
        """This process is through with the source."""


class Reporting(Protocol):
    """Where a runner says what happens: `ingest.board`."""

    def claim(self, source_id: str, uri: str, instead_of: str = "") -> str: ...

    def refused(self, uri: str) -> None: ...

    def reused(self, names: list[str]) -> None: ...

    def began(self, uri: str, step: str) -> None: ...

    def ended(
        self,
        uri: str,
        seconds: dict[str, float],
        video_s: float,
        failed: str = "",
        kind: str = "",
        again: bool = False,
    ) -> None: ...


class Runner:
    """The steps of a stage in one process."""

    def __init__(
        self,
        steps: Iterable[Step],
        on_demand: Iterable[Step],
        results: Results,
        watchdog: Watchdog,
        board: Reporting,
    ) -> None:
        self.steps = list(steps)
        self.results = results
        self.watchdog = watchdog
        self.board = board
        # a stage's own step rather than the one that only serves it
        self._on_demand = {step.name: step for step in [*on_demand, *self.steps] if step.name in ON_DEMAND}
        self._by_kind = {
            kind: name for step in [*on_demand, *self.steps] for name, kind in step.gives.items()
        }
        self._config = self.steps[0].config
        self._keys = self._config.keys()

    def warm(self, names: Iterable[str]) -> None:
        """Load the models of these steps before the first source comes. What cannot be loaded says so at its first source."""
        for step in self.steps:
            wanted = tuple(name for name in step.gives if name in names)
            if wanted:
                try:
                    step.load(wanted)
                except Exception:
                    return

    def run(self, record: SourceRecord) -> SourceRecord:
        """Take one source through the steps; it comes back without its results, which are stored."""
        record.load_result = self._stored
        reused: list[str] = []
        for step in self.steps:
            if record.failure is None and step.name not in ON_DEMAND:
                reused += self._run(step, record)
        if reused:
            self.board.reused(reused)
        for step in self._on_demand.values():
            step.release(record)
        record.results, record.load_result = {}, None
        return record

    def identify(self, record: SourceRecord) -> SourceRecord:
        """Find the source's id, reading it if need be, and refuse a copy of a source that came before."""
        if not record.source_id:
            self._run(self._on_demand["fetch"], record)
        if record.failure is None:
            first = self.board.claim(record.source_id, record.uri)
            if first != record.uri and _is_gone(first):
                first = self.board.claim(record.source_id, record.uri, instead_of=first)
            if first != record.uri:
                record.failure = Failure("fetch", "duplicate", f"same content as {first}")
                self.board.refused(record.uri)
        return record

    def _run(self, step: Step, record: SourceRecord) -> list[str]:
        """Run a step, and what it needs, as far as results are missing; returns the names of those that were stored."""
        wanted = tuple(name for name in step.gives if not self._has(record, name))
        stored = [name for name in step.gives if name not in wanted]
        if not wanted:
            return stored
        needs = {need for name in wanted for need in (SPECS[name].needs + SPECS[step.name].needs)}
        for name in ON_DEMAND:
            if name in needs and record.failure is None:
                self._run(self._on_demand[name], record)
        if record.failure is not None:
            return stored
        began = time.perf_counter()
        try:
            step.load(wanted)
            began = time.perf_counter()
            self.board.began(record.uri, step.name)
            limits = self._config.limits
            with self.watchdog.watching(
                record.uri, step.name, self._seconds(step, record), limits.step_memory_gb
            ):
                found = step(record, wanted)
                for name, result in found.items():
                    if SPECS[name].kept:
                        self.results.save(record.source_id, name, self._keys[name], result)
        except Exception as error:  # one source's defect must not touch the others
            record.failure = failure_of(error, step.name, record)
        else:
            record.results.update({step.gives[name]: result for name, result in found.items()})
        spent = time.perf_counter() - began
        seconds = step.spent if step.spent and record.failure is None else {step.name: spent}
        for name, part in seconds.items():
            record.step_seconds[name] = record.step_seconds.get(name, 0.0) + part
        probe = record.results.get(Probe)
        length = probe.duration_s if probe else 0.0
        failed, kind = (record.failure.stage, record.failure.error_type) if record.failure else ("", "")
        again = not record.failure and all(own is not step for own in self.steps)
        self.board.ended(record.uri, seconds, length, failed, kind, again)
        return stored

    def _has(self, record: SourceRecord, name: str) -> bool:
        """Whether a result is at hand: in memory, or stored and whole."""
        kind = next(kind for kind, step in self._by_kind.items() if step == name)
        if kind not in record.results and SPECS[name].kept:
            stored = self.results.load(record.source_id, name, self._keys[name], kind)
            if stored is not None:
                record.results[kind] = stored
        return kind in record.results

    def _stored(self, record: SourceRecord, kind: type) -> Any:
        from uniavgen.ingest.measures.steps import STEP_OF

        name = STEP_OF[kind]
        if name == "fetch":  # a step found out that it needs the file itself after all
            self._on_demand[name].load((name,))
            return self._on_demand[name](record, (name,))[name]
        found = self.results.load(record.source_id, name, self._keys[name], kind)
        if found is None:
            raise KeyError(f"{name} is not there")
        return found

    def _seconds(self, step: Step, record: SourceRecord) -> float:
        limits = self._config.limits
        fetching = self._config.sources.fetch_seconds if local_path(record.uri) is None else 0.0
        probe = record.results.get(Probe) or self.results.load(
            record.source_id, "probe", self._keys["probe"], Probe
        )
        return fetching + limits.step_seconds + limits.step_factor * (probe.duration_s if probe else 0.0)


def failure_of(error: Exception, step: str, record: SourceRecord) -> Failure:
    """What an exception in a step says of the source."""
    if "No space left on device" in str(error) or (
        isinstance(error, OSError) and error.errno == errno.ENOSPC
    ):
        return Failure(step, "no-space", f"{step} failed: {error}")
    if _is_gone(record.uri):
        return Failure(
            step,
            "vanished",
            f"the file is no longer there ({record.uri}); bring it back and run with --retry",
        )
    if isinstance(error, UserError):
        return Failure(step, error.kind or "bad-input", str(error))
    return Failure(step, type(error).__name__, f"{step} failed: {error}".strip())


def _is_gone(uri: str) -> bool:
    path = local_path(uri)
    return path is not None and not os.path.lexists(path)
