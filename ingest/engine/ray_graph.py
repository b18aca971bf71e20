"""The Ray Data graph of ingest: one operator per group of worker pools, one source per row.

`ingest.pools` in the configuration sets what each pool takes of a machine. The graph is the same on one
machine and on a cluster. A row carries identity and failure of a source; results are stored by the steps and
read where they are needed. Errors are caught per source inside the steps, because Ray's own error handling
drops blocks.
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniavgen.ingest.config import PoolConfig, PoolsConfig
from uniavgen.ingest.engine.progress import Reporter
from uniavgen.ingest.engine.runner import Runner
from uniavgen.ingest.engine.step import POOLS, Step, StepGraph
from uniavgen.ingest.engine.step_cache import StepCache
from uniavgen.ingest.records import SourceRecord

MODEL_POOLS = ("speech", "sight")
"""Pools whose steps load models: their workers are actors, those of the others are plain tasks."""

JOINT = "joint"
"""Configuration section of workers that run all of `MODEL_POOLS`."""

MAX_SOURCES_PER_GRAPH = 2000
"""Sources in one graph; further ones follow in graphs of their own. Heuristic: each source is a block, so
that it is committed when it is done and not with its neighbours, and Ray Data keeps some memory per block of
a live graph."""

MIN_TASKS = 2
"""Workers of a pool without models on the smallest machine: one may be waiting for its disk. Heuristic."""

POLL_S = 0.5
"""How often `finished_sources` returns control to its caller."""


@dataclass(frozen=True)
class WorkerGroup:
    """Workers of one kind: the pools whose steps they run, what each takes, and their number."""

    pools: tuple[str, ...]
    resources: PoolConfig
    count: int

    @property
    def loads_models(self) -> bool:
        return bool(set(self.pools) & set(MODEL_POOLS))


def worker_groups(config: PoolsConfig, cpus: float, sources: int) -> list[WorkerGroup]:
    """The graph's workers, in order, on a machine or cluster with so many CPUs."""
    split = config.layout == "split" or (
        config.layout == "auto" and (config.speech.num_gpus or config.sight.num_gpus)
    )
    pool_groups = [(pool,) for pool in POOLS] if split else [(POOLS[0],), MODEL_POOLS, (POOLS[-1],)]
    groups = []
    for pools in pool_groups:
        resources: PoolConfig = getattr(config, JOINT if pools == MODEL_POOLS else pools[0])
        minimum = 1 if set(pools) & set(MODEL_POOLS) else MIN_TASKS
        default = max(minimum, int(cpus) if pools == MODEL_POOLS else int(cpus // 2))
        groups.append(WorkerGroup(pools, resources, min(sources, resources.workers or default)))
    return groups


class PoolWorker:
    """The steps of some pools in one Ray process: called with a row, returns the row."""

    def __init__(
        self,
        graph: StepGraph,
        pools: tuple[str, ...],
        threads: int,
        run_dir: Path,
        corpus_root: Path,
        run_state: Any,
        warm: tuple[str, ...] = (),
    ) -> None:
        """`warm` names the steps whose models are loaded before the first source comes."""
        self._identifies = POOLS[0] in pools
        self._runner = Runner(graph, pools, run_dir, corpus_root, Reporter(run_state))
        if warm:
            with _no_collections():
                import torch

                torch.set_num_threads(threads)
                self._runner.warm(warm)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        record = SourceRecord.from_json(row["source"])
        if self._identifies and record.failure is None:
            self._runner.identify(record)
        self._runner.run(record)
        return {"source": record.to_json()}


@contextmanager
def _no_collections() -> Iterator[None]:
    """Load libraries and models without garbage collections, which would look through them again and again.

    What was loaded stays, so later collections leave it out.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def finished_sources(
    todo: list[SourceRecord], graph: StepGraph, run_dir: Path, corpus_root: Path, run_state: Any
) -> Iterator[SourceRecord | None]:
    """Sources as they end, and None twice a second between them, so that the caller can do other work."""
    ended: queue.Queue[SourceRecord | BaseException | None] = queue.Queue()

    def collect() -> None:
        try:
            for start in range(0, len(todo), MAX_SOURCES_PER_GRAPH):
                part = todo[start : start + MAX_SOURCES_PER_GRAPH]
                for row in _dataset(part, graph, run_dir, corpus_root, run_state).iter_rows():
                    ended.put(SourceRecord.from_json(row["source"]))
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    threading.Thread(target=collect, daemon=True).start()
    while True:
        try:
            item = ended.get(timeout=POLL_S)
        except queue.Empty:
            yield None
            continue
        if item is None:
            return
        if isinstance(item, BaseException):
            raise item
        yield item


def _dataset(
    todo: list[SourceRecord], graph: StepGraph, run_dir: Path, corpus_root: Path, run_state: Any
) -> Any:
    """The Ray dataset whose rows are the finished sources."""
    import ray

    _silence(ray.data.DataContext.get_current())
    cpus = float(ray.cluster_resources().get("CPU", 1))
    rows = [{"source": record.to_json()} for record in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    missing = missing_steps(todo[0], graph, corpus_root)
    arguments: dict[str, Any] = {
        "graph": graph,
        "run_dir": run_dir,
        "corpus_root": corpus_root,
        "run_state": run_state,
    }
    for group in worker_groups(graph.config.pools, cpus, len(rows)):
        worker = {"pools": group.pools, "threads": group.resources.threads, **arguments}
        if group.loads_models:
            dataset = dataset.map(
                PoolWorker,
                fn_constructor_kwargs={"warm": missing, **worker},
                num_cpus=group.resources.num_cpus,
                num_gpus=group.resources.num_gpus or None,
                # one source at a time: none waits behind a long one while another worker is free
                compute=ray.data.ActorPoolStrategy(size=group.count, max_tasks_in_flight_per_actor=1),
            )
        else:
            tasks = ray.data.TaskPoolStrategy(size=group.count)
            dataset = dataset.map(_as_task(worker), num_cpus=group.resources.num_cpus, compute=tasks)
    return dataset


def missing_steps(record: SourceRecord, graph: StepGraph, corpus_root: Path) -> tuple[str, ...]:
    """Steps without a stored result of the source, also one of an earlier version that may still be right.

    Of the first source these are the steps whose models are worth loading before it comes.
    """
    cache = StepCache(corpus_root)

    def stored(kind: type) -> Any:
        name = graph.step_of(kind)
        return cache.load(record.source_id, name, graph.key(name, stored), kind)

    def is_stored(step: type[Step]) -> bool:
        keys = [graph.key(step.name, stored)]
        if step.earlier_version:
            keys.append(graph.earlier_key(step.name, stored))
        return any(cache.has(record.source_id, step.name, key) for key in keys)

    return tuple(step.name for step in graph.steps if not is_stored(step))


def _silence(context: Any) -> None:
    """Keep Ray Data off the console: it has log files of its own, and ingest has its summary."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)


def _as_task(arguments: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def run(row: dict[str, Any]) -> dict[str, Any]:
        return PoolWorker(**arguments)(row)

    return run
