"""Ray graph: number and order of workers by CPUs and configuration, and division into graphs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from uniavgen.ingest.config import IngestConfig, PoolsConfig
from uniavgen.ingest.engine.ray_graph import finished_sources, missing_steps, worker_groups
from uniavgen.ingest.engine.step import POOLS, Step, StepGraph
from uniavgen.ingest.engine.step_cache import StepCache
from uniavgen.ingest.records import SourceRecord


@pytest.mark.parametrize("layout", ["joint", "split"])
@pytest.mark.parametrize("cpus", [2, 3, 8, 64])
def test_every_pool_runs_once_in_order_and_all_workers_fit(layout: str, cpus: int) -> None:
    groups = worker_groups(PoolsConfig.model_validate({"layout": layout}), cpus, sources=1000)
    assert tuple(pool for group in groups for pool in group.pools) == POOLS
    resident = sum(group.resources.num_cpus * group.count for group in groups if group.loads_models)
    for group in groups:
        assert group.loads_models or resident + group.resources.num_cpus <= cpus, (
            "no CPU left for a task beside the actors: the graph would stall"
        )


def test_no_more_workers_than_sources() -> None:
    assert [group.count for group in worker_groups(PoolsConfig(), 64, sources=3)] == [3, 3, 3]
    assert all(group.count == 1 for group in worker_groups(PoolsConfig(), 64, sources=1))


def test_worker_counts_grow_with_the_cluster() -> None:
    small, large = (
        [group.count for group in worker_groups(PoolsConfig(), cpus, sources=10**5)] for cpus in (2, 1600)
    )
    assert small == [2, 2, 2]
    assert large == [800, 1600, 800]


def test_share_of_a_gpu_splits_pools_unless_configured() -> None:
    gpu = {"speech": {"num_gpus": 0.25, "num_cpus": 1}}
    assert len(worker_groups(PoolsConfig.model_validate(gpu), 8, 10)) == 4
    assert len(worker_groups(PoolsConfig.model_validate({**gpu, "layout": "joint"}), 8, 10)) == 3
    assert len(worker_groups(PoolsConfig(), 8, 10)) == 3


def test_configured_worker_count_is_used() -> None:
    groups = worker_groups(PoolsConfig.model_validate({"joint": {"workers": 5}}), 8, 10)
    assert [group.count for group in groups if group.loads_models] == [5]


def test_sources_are_divided_into_graphs_of_limited_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[list[str]] = []

    class Graph:
        """A fake Ray dataset that returns the rows unchanged."""

        def __init__(self, todo: list[SourceRecord], *_: object) -> None:
            self.todo = todo
            graphs.append([record.uri for record in todo])

        def iter_rows(self) -> Iterator[dict[str, str]]:
            return ({"source": record.to_json()} for record in self.todo)

    monkeypatch.setattr("uniavgen.ingest.engine.ray_graph.MAX_SOURCES_PER_GRAPH", 4)
    monkeypatch.setattr("uniavgen.ingest.engine.ray_graph._dataset", Graph)
    todo = [SourceRecord(str(number)) for number in range(10)]
    ended = list(finished_sources(todo, StepGraph((), IngestConfig()), tmp_path, tmp_path, None))
    assert [record.uri for record in ended if record] == [record.uri for record in todo]
    assert [len(graph) for graph in graphs] == [4, 4, 2]


@dataclass(frozen=True)
class Shape:
    variant: str = ""


@dataclass(frozen=True)
class Passage:
    text: str


class ShapeStep(Step):
    name, pool, version, has_variants, result = "shape", POOLS[0], "3", True, Shape


class PassageStep(Step):
    name, pool, version, earlier_version, result = "passage", POOLS[1], "2", "1", Passage
    needs = ("shape",)


@pytest.mark.parametrize("variant", ["", "two tracks"])
@pytest.mark.parametrize("version", ["none", "earlier", "present"])
def test_models_are_loaded_early_for_missing_results_only(tmp_path: Path, variant: str, version: str) -> None:
    graph, cache = StepGraph((ShapeStep, PassageStep), IngestConfig()), StepCache(tmp_path)
    record = SourceRecord("a.mp4", "5" * 32)
    assert missing_steps(record, graph, tmp_path) == ("shape", "passage")
    shape = Shape(variant)

    def result_of(kind: type) -> Any:
        return shape if kind is Shape else None

    cache.save(record.source_id, "shape", graph.keys["shape"], shape)
    if version != "none":
        key = {"present": graph.key, "earlier": graph.earlier_key}[version]("passage", result_of)
        cache.save(record.source_id, "passage", key, Passage("hello"))
    assert missing_steps(record, graph, tmp_path) == (("passage",) if version == "none" else ())
