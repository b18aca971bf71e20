"""Bad steps, rewinds and warnings, on made values."""

from __future__ import annotations

import math
import random
from statistics import median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.shards.errors import UserError
from uniavgen.train.diagnostics.config import HealthConfig
from uniavgen.train.diagnostics.health import Rewinds, StepHealth, fault_of, statistics_of
from uniavgen.train.diagnostics.run_warnings import (
    dead_interaction,
    slow_rank,
    stalled_loader,
    vanishing_mask,
)

CONFIG = HealthConfig(window=10, loss_spike=3, grad_spike=5, rewind_after=3, max_rewinds=1)


def healthy(steps: int = 10, task: str = "joint") -> StepHealth:
    health = StepHealth()
    for step in range(steps):
        health.take(CONFIG, task, 1 + step / 10, 2.0)
    return health


def test_limits_follow_the_median_once_half_a_window_is_full() -> None:
    assert healthy(4).limits(CONFIG, "joint") == (math.inf, math.inf)
    assert healthy(5).limits(CONFIG, "joint") == (pytest.approx(3 * 1.2), 10)
    assert healthy(30).limits(CONFIG, "joint")[0] == pytest.approx(
        3 * median(1 + step / 10 for step in range(20, 30))
    )


def test_limits_are_separate_for_each_task() -> None:
    assert healthy().limits(CONFIG, "dubbing") == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("loss", "norm", "said"),
    [
        (math.nan, 1.0, "loss is nan"),
        (math.inf, 1.0, "loss is inf"),
        (1.0, math.nan, "gradient norm is nan"),
        (1.0, math.inf, "gradient norm is inf"),
        (9.0, 1.0, "loss 9 is over the limit"),
        (1.0, 10.5, "gradient norm 10.5 is over the limit of 10"),
    ],
)
def test_nonfinite_values_and_spikes_are_faults(loss: float, norm: float, said: str) -> None:
    assert said in fault_of(loss, norm, healthy().limits(CONFIG, "joint"))


@given(st.lists(st.floats(0.8, 1.2), min_size=10, max_size=50), st.floats(0.5, 2))
def test_steady_values_are_no_fault(values: list[float], last: float) -> None:
    health = StepHealth()
    for value in values:
        assert fault_of(value, value, health.limits(CONFIG, "joint")) == ""
        health.take(CONFIG, "joint", value, value)
    assert fault_of(last, last, health.limits(CONFIG, "joint")) == ""


def test_step_health_survives_saving() -> None:
    health = healthy()
    health.leave(10)
    assert StepHealth(**health.as_dict()) == health


def test_only_bad_steps_in_a_row_are_counted() -> None:
    health = StepHealth()
    assert [health.leave(step) for step in (3, 4, 5)] == [1, 2, 3]
    assert health.bad == [3, 4, 5]
    health.take(CONFIG, "joint", 1, 1)
    assert health.bad == []
    assert health.leave(9) == 1


def test_rewinds_skip_bad_steps_and_end_with_an_error() -> None:
    first = Rewinds()
    first.refuse_more(CONFIG, [3, 4, 5], "loss is nan", "events.jsonl")
    second = first.after([3, 4, 5])
    assert second == Rewinds(1, [3, 4, 5])
    with pytest.raises(UserError) as caught:
        second.refuse_more(CONFIG, [7, 8, 9], "loss is nan", "events.jsonl")
    assert str(caught.value) == (
        "training diverged: 3 bad steps in a row up to step 10, again after going back 1 time; "
        "the last: loss is nan (events.jsonl); look at the samples named there, lower the learning rate, "
        "or start from an earlier checkpoint"
    )
    assert caught.value.kind == "diverged"
    assert second.after([4, 8]).avoid == [3, 4, 5, 8]


def test_slow_rank_is_named() -> None:
    seconds = [random.Random(rank).uniform(0.9, 1.1) for rank in range(8)]
    assert slow_rank(CONFIG, seconds) == ""
    seconds[5] = 2.5
    assert slow_rank(CONFIG, seconds).startswith("rank 5 is slow: 2.50 s a step")
    assert slow_rank(CONFIG, [1.0, 2.0]).startswith("rank 1 is slow")
    assert slow_rank(CONFIG, [2.0]) == ""


def test_stalled_loader_gives_the_share() -> None:
    assert stalled_loader(CONFIG, 1, 10) == ""
    assert "30% of the time" in stalled_loader(CONFIG, 3, 10)


def test_masks_vanish_if_all_layers_do() -> None:
    assert vanishing_mask(CONFIG, [0.001, 0.3]) == ""
    assert vanishing_mask(CONFIG, []) == ""
    assert "0.0040 is the largest mean of 2" in vanishing_mask(CONFIG, [0.001, 0.004])


def test_output_projection_at_zero_is_named() -> None:
    assert dead_interaction({"0.a2v": 0.1, "0.v2a": 1e-9}) == ""
    assert "1 of 2 directions (0.v2a)" in dead_interaction({"0.a2v": 0.1, "0.v2a": 0.0})


def test_statistics_count_nonfinite_values() -> None:
    tensor = torch.tensor([1.0, 3.0, math.nan, math.inf])
    assert statistics_of({"mel": tensor})["mel"] == {"not_finite": 2, "min": 1, "max": 3, "mean": 2, "std": 1}
    assert statistics_of({"mel": torch.full((2,), math.nan)})["mel"] == {"not_finite": 2}
    assert statistics_of({"mask": torch.tensor([True, False])})["mask"]["mean"] == 0.5
