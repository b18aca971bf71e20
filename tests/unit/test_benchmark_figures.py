"""Where the benchmark says that time went, against a run whose timetable is known."""

import importlib.util
from types import ModuleType

import pytest
from paths import ROOT


@pytest.fixture(scope="module")
def compare() -> ModuleType:
    path = ROOT / "tests" / "benchmarks" / "ingest" / "compare.py"
    spec = importlib.util.spec_from_file_location("compare", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_start_waiting_and_tail_add_up_to_the_idle_time(compare: ModuleType) -> None:
    """Two cores, sampled each second: 10 s start-up, 20 s both busy but 4 s with one, 5 s with one."""
    running = [0] * 10 + [2] * 8 + [1] * 4 + [2] * 8 + [1] * 5
    history, worked = [], 0.0
    for at, count in enumerate(running):
        worked += count * 1.0
        history.append((float(at), {"fetch": 0.0, "faces": worked}, count))
    found = compare.where_time_went(history, 35.0, 2)
    assert found["start_s"] == 10.0
    assert found["tail_s"] == pytest.approx(5.0)
    assert found["idle_before_tail_core_s"] == pytest.approx(4.0)
    assert found["idle_in_tail_core_s"] == pytest.approx(5.0)
    busy = sum(running[10:]) - 2  # the work of the first second counts for the start
    assert found["busy_share_after_start"] == pytest.approx(busy / (25 * 2))


def test_a_run_that_did_nothing_is_no_division_by_zero(compare: ModuleType) -> None:
    assert compare.where_time_went([], 3.0, 2)["busy_share_after_start"] == 0.0
