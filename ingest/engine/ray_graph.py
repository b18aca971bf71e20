"""The stages of ingest as Ray Data workers, and the graph that joins them.

Goes in: sources to be measured. Comes out: the same, ended, in the order in which they end. What a stage takes of a machine
says `ingest.stages` in the configuration; the graph is the same on one machine and on a cluster.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniavgen.ingest.config import IngestConfig, StageConfig, StagesConfig
from uniavgen.ingest.engine.run_state import Reporter
from uniavgen.ingest.engine.step import Reporting, Runner
from uniavgen.ingest.engine.step_cache import Results
from uniavgen.ingest.engine.step_graph import STAGES
from uniavgen.ingest.engine.watchdog import Watchdog
from uniavgen.ingest.records import SourceRecord

JOINT = "joint"
"""Worker that does the work of the stages `LOADING`."""

LOADING = ("speech", "sight")
"""Stages that hold models: their workers are actors; the others are plain tasks."""

WAVE = 2000
"""Sources that go through one graph; more follow in graphs of their own (our choice). Each is a block of its own, so that it is
committed when it is done and not with its neighbours; Ray Data keeps something of every block as long as the graph lives."""

LEAST_TASKS = 2
"""Workers of a stage without models, on the smallest machine: one may wait for its disk (our choice)."""

MARKERS = "attempts"
"""Folder of the watchdog's markers in the run's scratch folder."""

LOOK_S = 0.5
"""How often the driver is told that time has passed."""


@dataclass(frozen=True)
class WorkerKind:
    """One kind of worker in the graph: the stages whose steps it runs, what it takes, and how many there may be."""

    stages: tuple[str, ...]
    takes: StageConfig
    count: int

    @property
    def loads(self) -> bool:
        return bool(set(self.stages) & set(LOADING))


def worker_kinds(config: StagesConfig, cpus: float, sources: int) -> list[WorkerKind]:
    """The graph's workers, in order, on a machine or a cluster with so many CPUs."""
    split = config.layout == "split" or (
        config.layout == "auto" and (config.speech.num_gpus or config.sight.num_gpus)
    )
    groups: list[tuple[str, ...]] = (
        [(stage,) for stage in STAGES] if split else [(STAGES[0],), LOADING, (STAGES[-1],)]
    )
    kinds = []
    for stages in groups:
        takes: StageConfig = getattr(config, JOINT if stages == LOADING else stages[0])
        least = 1 if set(stages) & set(LOADING) else LEAST_TASKS
        usual = max(least, int(cpus) if stages == LOADING else int(cpus // 2))
        kinds.append(WorkerKind(stages, takes, min(sources, takes.workers or usual)))
    return kinds


def make_runner(
    stages: Sequence[str],
    config: IngestConfig,
    corpus_root: str | Path,
    scratch: str | Path,
    board: Reporting,
) -> Runner:
    """The steps of some stages for this process. `scratch` is the run's folder for files that it throws away."""
    from uniavgen.ingest.measures.steps import STEP_CLASSES, Fetching, Hearing

    place = config, Path(scratch), Path(corpus_root)
    steps = [step(*place) for stage in stages for step in STEP_CLASSES[stage]]
    markers = Path(scratch) / MARKERS
    markers.mkdir(parents=True, exist_ok=True)
    return Runner(steps, [Fetching(*place), Hearing(*place)], Results(corpus_root), Watchdog(markers), board)


class StageWorker:
    """Some stages' steps in one process: called with a row, gives the row back."""

    def __init__(
        self,
        stages: tuple[str, ...],
        threads: int,
        config: str,
        corpus_root: str,
        scratch: str,
        board: Any,
        warm: tuple[str, ...] = (),
    ) -> None:
        settings = IngestConfig.model_validate_json(config)
        if warm:
            import torch

            torch.set_num_threads(threads)
        self._first = STAGES[0] in stages
        self._runner = make_runner(stages, settings, corpus_root, scratch, Reporter(board))
        self._runner.warm(warm)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        record = SourceRecord.from_json(row["source"])
        if self._first and record.failure is None:
            self._runner.identify(record)
        self._runner.run(record)
        return {"source": record.to_json()}


def finished_sources(
    todo: list[SourceRecord], corpus_root: Path, scratch: Path, config: IngestConfig, board: Any
) -> Iterator[SourceRecord | None]:
    """Sources as they end; None twice a second in between, so that the one who asks can do something else."""
    ended: queue.Queue[SourceRecord | BaseException | None] = queue.Queue()

    def collect() -> None:
        try:
            for first in range(0, len(todo), WAVE):
                wave = _graph(todo[first : first + WAVE], corpus_root, scratch, config, board)
                for row in wave.iter_rows():
                    ended.put(SourceRecord.from_json(row["source"]))
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    threading.Thread(target=collect, daemon=True).start()
    while True:
        try:
            found = ended.get(timeout=LOOK_S)
        except queue.Empty:
            yield None
            continue
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        yield found


def _graph(
    todo: list[SourceRecord], corpus_root: Path, scratch: Path, config: IngestConfig, board: Any
) -> Any:
    import ray

    _set_up(ray.data.DataContext.get_current())
    cpus = float(ray.cluster_resources().get("CPU", 1))
    rows = [{"source": record.to_json()} for record in todo]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    missing = _missing_steps(todo[0], corpus_root, config)
    arguments: dict[str, Any] = {
        "config": config.model_dump_json(),
        "corpus_root": str(corpus_root),
        "scratch": str(scratch),
        "board": board,
    }
    for kind in worker_kinds(config.stages, cpus, len(rows)):
        own = {"stages": kind.stages, "threads": kind.takes.threads, **arguments}
        if kind.loads:
            dataset = dataset.map(
                StageWorker,
                fn_constructor_kwargs={"warm": missing, **own},
                num_cpus=kind.takes.num_cpus,
                num_gpus=kind.takes.num_gpus or None,
                # one source at a time: none waits for a worker that is busy with a long one while another is free
                compute=ray.data.ActorPoolStrategy(size=kind.count, max_tasks_in_flight_per_actor=1),
            )
        else:
            pool = ray.data.TaskPoolStrategy(size=kind.count)
            dataset = dataset.map(_as_task(own), num_cpus=kind.takes.num_cpus, compute=pool)
    return dataset


def _missing_steps(record: SourceRecord, corpus_root: Path, config: IngestConfig) -> tuple[str, ...]:
    """Steps whose results the first source lacks: their models are worth loading before it comes."""
    results = Results(corpus_root)
    return tuple(name for name, key in config.keys().items() if not results.has(record.source_id, name, key))


def _set_up(context: Any) -> None:
    """Ray Data speaks to the console by default; what it has to say is in its own log files, and here in the summary."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)


def _as_task(arguments: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def run(row: dict[str, Any]) -> dict[str, Any]:
        return StageWorker(**arguments)(row)

    return run
