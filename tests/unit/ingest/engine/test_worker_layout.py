"""Which workers an ingest starts: every step in one of them, and never more than the machine holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from uniavgen.ingest.config import IngestConfig, StagesConfig
from uniavgen.ingest.engine.ray_graph import finished_sources, worker_kinds
from uniavgen.ingest.engine.step_graph import STAGES
from uniavgen.ingest.records import SourceRecord


@pytest.mark.parametrize("layout", ["joint", "split"])
@pytest.mark.parametrize("cpus", [2, 3, 8, 64])
def test_every_stage_runs_once_in_order_and_all_workers_fit_together(layout: str, cpus: int) -> None:
    kinds = worker_kinds(StagesConfig.model_validate({"layout": layout}), cpus, sources=1000)
    assert tuple(stage for kind in kinds for stage in kind.stages) == STAGES
    resident = sum(kind.takes.num_cpus * kind.count for kind in kinds if kind.loads)
    for kind in kinds:
        assert kind.loads or resident + kind.takes.num_cpus <= cpus, (
            "no room for a task beside the actors: the graph would stall"
        )


def test_no_more_workers_are_started_than_there_are_sources() -> None:
    assert [kind.count for kind in worker_kinds(StagesConfig(), 64, sources=3)] == [3, 3, 3]
    assert all(kind.count == 1 for kind in worker_kinds(StagesConfig(), 64, sources=1))


def test_every_kind_of_worker_grows_with_the_cluster() -> None:
    small, large = (
        [kind.count for kind in worker_kinds(StagesConfig(), cpus, sources=10**5)] for cpus in (2, 1600)
    )
    assert small == [2, 2, 2]
    assert large == [800, 1600, 800]


def test_a_share_of_a_gpu_takes_the_stages_apart_unless_the_user_says_otherwise() -> None:
    gpu = {"speech": {"num_gpus": 0.25, "num_cpus": 1}}
    assert len(worker_kinds(StagesConfig.model_validate(gpu), 8, 10)) == 4
    assert len(worker_kinds(StagesConfig.model_validate({**gpu, "layout": "joint"}), 8, 10)) == 3
    assert len(worker_kinds(StagesConfig(), 8, 10)) == 3


def test_the_user_s_number_of_workers_holds() -> None:
    kinds = worker_kinds(StagesConfig.model_validate({"joint": {"workers": 5}}), 8, 10)
    assert [kind.count for kind in kinds if kind.loads] == [5]


def test_every_source_is_in_one_graph_and_no_graph_is_larger_than_a_wave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waves: list[list[str]] = []

    class Graph:
        """What Ray Data gives back for a graph: here the rows as they went in."""

        def __init__(self, todo: list[SourceRecord], *_: object) -> None:
            self.todo = todo
            waves.append([record.uri for record in todo])

        def iter_rows(self) -> Iterator[dict[str, str]]:
            return ({"source": record.to_json()} for record in self.todo)

    monkeypatch.setattr("uniavgen.ingest.engine.ray_graph.WAVE", 4)
    monkeypatch.setattr("uniavgen.ingest.engine.ray_graph._graph", Graph)
    todo = [SourceRecord(str(number)) for number in range(10)]
    ended = list(finished_sources(todo, tmp_path, tmp_path, IngestConfig(), None))
    assert [record.uri for record in ended if record] == [record.uri for record in todo]
    assert [len(wave) for wave in waves] == [4, 4, 2]
