"""Runs the steps of one or more pools on one source after another, in one process and without Ray.

Results are stored under the keys of their steps and reused. An exception in a step ends that source alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from uniavgen.ingest.engine.loading import LOADING, ModelLoader, explained
from uniavgen.ingest.engine.machine_faults import machine_fault
from uniavgen.ingest.engine.progress import Reporter, RunState
from uniavgen.ingest.engine.step import FrameStep, Step, StepGraph
from uniavgen.ingest.engine.step_cache import StepCache
from uniavgen.ingest.engine.watchdog import Watchdog
from uniavgen.ingest.records import DUPLICATE, Failure, Probe, SourceRecord
from uniavgen.shards.errors import UserError
from uniavgen.shards.uris import local_path

ATTEMPTS = "attempts"
"""Folder in the run directory that holds the watchdog's markers."""


class Runner:
    """The steps of some pools in one process."""

    def __init__(
        self,
        graph: StepGraph,
        pools: Sequence[str],
        run_dir: Path,
        corpus_root: Path,
        report: Reporter | RunState,
    ) -> None:
        self._graph = graph
        self._pools = pools
        self._cache = StepCache(corpus_root)
        self._report = report
        attempts, loading = run_dir / ATTEMPTS, run_dir / LOADING
        attempts.mkdir(parents=True, exist_ok=True)
        loading.mkdir(exist_ok=True)
        self._watchdog = Watchdog(attempts)
        self._models = ModelLoader(loading)
        made = [
            step(graph, run_dir, corpus_root)
            for step in graph.steps
            if step.on_demand or (step.pool in pools and not issubclass(step, FrameStep))
        ]
        self._steps = [step for step in made if not step.on_demand]
        self._on_demand = {step.name: step for step in made if step.on_demand}

    def warm(self, names: Iterable[str]) -> None:
        """Load and try the models of these steps before the first source comes, which will raise any error
        again.
        """
        for step in self._steps:
            for member in step.members:
                if member.name in names:
                    try:
                        self._models.load(member)
                    except Exception:
                        return

    def run(self, record: SourceRecord) -> SourceRecord:
        """Take one source through the steps. The record comes back without results, which are stored."""
        record.load_result = self._load_result
        reused: list[str] = []
        for step in self._steps:
            if record.failure is None:
                reused += self._run_step(step, record)
        if reused:
            self._report.count_reused(reused)
        for step in self._on_demand.values():
            step.release(record)
        record.results, record.load_result = {}, None
        return record

    def identify(self, record: SourceRecord) -> SourceRecord:
        """Set the source's id, reading the file if necessary, and fail a duplicate of an earlier source."""
        if not record.source_id:
            self._run_step(self._on_demand["fetch"], record)
        if record.failure is None:
            first = self._report.claim(record.source_id, record.uri)
            if first != record.uri and _is_missing(first):
                first = self._report.claim(record.source_id, record.uri, instead_of=first)
            if first != record.uri:
                record.failure = Failure("fetch", DUPLICATE, f"same content as {first}")
                self._report.count_duplicate(record.uri)
        return record

    def _run_step(self, step: Step, record: SourceRecord) -> list[str]:
        """Run a step and the on-demand steps it needs, if results are missing. Returns the steps reused."""
        missing = [member for member in step.members if not self._has_result(record, member)]
        reused = [member.name for member in step.members if member not in missing]
        if not missing:
            return reused
        needs = {*step.needs, *(need for member in missing for need in member.needs)}
        for name, needed in self._on_demand.items():
            if name in needs and record.failure is None:
                self._run_step(needed, record)
        if record.failure is None:
            self._measure(step, missing, record)
        return reused

    def _measure(self, step: Step, missing: Sequence[Step], record: SourceRecord) -> None:
        """Call a step within its limits, store the results, and report how it went."""
        started = time.perf_counter()
        loaded = False
        try:
            for member in missing:
                self._models.load(member)
            loaded = True
            started = time.perf_counter()
            self._report.start_step(record.uri, step.name)
            memory_gb = self._graph.config.limits.step_memory_gb
            with self._watchdog.watching(record.uri, step.name, self._time_limit_s(record), memory_gb):
                results = step.measure_members(record, missing)
                for member in missing:
                    if member.stored:
                        key = self._key(record, member.name)
                        self._cache.save(record.source_id, member.name, key, results[member.name])
        except Exception as error:  # a defect of one source must not affect the others
            record.failure = failure_of(error, step.name, record, loading=not loaded)
        else:
            record.results.update({type(result): result for result in results.values()})
        seconds = {step.name: time.perf_counter() - started}
        if step.member_seconds and record.failure is None:
            seconds = step.member_seconds
        for name, spent in seconds.items():
            record.step_seconds[name] = record.step_seconds.get(name, 0.0) + spent
        probe = record.results.get(Probe)
        failed, kind = (record.failure.stage, record.failure.error_type) if record.failure else ("", "")
        repeated = not record.failure and step.pool not in self._pools
        self._report.end_step(
            record.uri, seconds, probe.duration_s if probe else 0.0, failed, kind, repeated=repeated
        )

    def _has_result(self, record: SourceRecord, step: Step) -> bool:
        """Whether a result is in memory, or stored and undamaged."""
        assert step.result is not None
        if step.result not in record.results and step.stored:
            key = self._key(record, step.name)
            stored: Any = self._cache.load(record.source_id, step.name, key, step.result)
            if stored is None and step.earlier_version:
                stored = self._revised(record, step, key)
            if stored is not None:
                record.results[step.result] = stored
        return step.result in record.results

    def _revised(self, record: SourceRecord, step: Step, key: str) -> Any:
        """The result of the step's earlier version where it is right or can be corrected; None elsewhere."""
        earlier_key = self._graph.earlier_key(step.name, lambda kind: self._stored(record, kind))
        assert step.result is not None
        earlier: Any = self._cache.load(record.source_id, step.name, earlier_key, step.result)
        revised = None if earlier is None else step.revise(record, earlier)
        if revised is not None:
            self._cache.save(record.source_id, step.name, key, revised)
        return revised

    def _load_result(self, record: SourceRecord, kind: type) -> Any:
        name = self._graph.step_of(kind)
        if name in self._on_demand:  # a step needs the file after all, though not always
            return self._on_demand[name].measure(record)
        stored: Any = self._cache.load(record.source_id, name, self._key(record, name), kind)
        if stored is None:
            raise KeyError(f"{name} is not stored")
        return stored

    def _key(self, record: SourceRecord, name: str) -> str:
        """The step's key for this source, whose results of earlier steps may set it apart from others."""
        return self._graph.key(name, lambda kind: self._stored(record, kind))

    def _stored(self, record: SourceRecord, kind: type) -> Any:
        """A result of the source, in memory or stored; None before it was made, or if no step makes it."""
        name = next((step.name for step in self._graph.steps if step.result is kind), None)
        if kind not in record.results and record.source_id and name:
            stored: Any = self._cache.load(record.source_id, name, self._key(record, name), kind)
            if stored is None:
                return None
            record.results[kind] = stored
        return record.results.get(kind)

    def _time_limit_s(self, record: SourceRecord) -> float:
        config = self._graph.config
        fetch_s = config.sources.fetch_seconds if local_path(record.uri) is None else 0.0
        probe = self._stored(record, Probe)
        video_s = probe.duration_s if probe else 0.0
        return fetch_s + config.limits.step_seconds + config.limits.step_factor * video_s


def failure_of(error: Exception, step: str, record: SourceRecord, *, loading: bool = False) -> Failure:
    """The failure that an exception in a step means for its source. `loading`: it came before the source was
    touched, while models were loaded, so it is the machine's.
    """
    fault = machine_fault(error, local_path(record.uri), loading=loading)
    if fault:
        message = f"its models cannot be loaded: {explained(error)}" if loading else f"failed: {error}"
        return Failure(step, fault, f"{step} {message}".strip())
    if _is_missing(record.uri):
        message = f"the file no longer exists ({record.uri}); restore it and run with --retry"
        return Failure(step, "vanished", message)
    if isinstance(error, UserError):
        return Failure(step, error.kind or "bad-input", str(error))
    return Failure(step, type(error).__name__, f"{step} failed: {error}".strip())


def _is_missing(uri: str) -> bool:
    path = local_path(uri)
    return path is not None and not os.path.lexists(path)
