"""Scores, intervals and the order test, against scipy, numpy and values computed by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from uniavgen.orchestration.evaluation.statistics import (
    matched_auc,
    order_of,
    score_of,
    set_score,
)

NUMBERS = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=12)


def test_score_is_the_weighted_mean_of_a_worked_example() -> None:
    # 1 error in 2 words and 1 error in 8 words are 2 errors in 10 words
    assert score_of([0.5, 0.125], [2, 8]).value == pytest.approx(0.2)


def test_interval_agrees_with_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    score = score_of(values.tolist())
    half = norm.ppf(0.975) * values.std(ddof=1) / np.sqrt(400)
    assert (score.low, score.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)


def test_one_clip_has_no_interval() -> None:
    score = score_of([3.0])
    assert (score.value, score.count) == (3.0, 1)
    assert np.isnan([score.low, score.high]).all()


def test_set_score_resamples_rows() -> None:
    rows = np.random.default_rng(2).normal(0, 1, (300, 1))
    score = set_score(rows, lambda part: float(part.mean()), resamples=400)
    assert score.value == pytest.approx(rows.mean())
    assert score.high - score.low == pytest.approx(2 * 1.96 / np.sqrt(300), rel=0.25)


@settings(max_examples=15, deadline=None)
@given(NUMBERS, st.floats(0.5, 5), st.floats(0.5, 5))
def test_order_holds_for_levels_that_fall_by_a_constant(
    values: list[float], first: float, second: float
) -> None:
    levels = {
        "real": values,
        "disturbed": [v - first for v in values],
        "swapped": [v - first - second for v in values],
    }
    assert order_of(levels, "higher").holds
    assert not order_of(levels, "lower").holds
    assert not order_of({**levels, "disturbed": levels["swapped"]}, "higher").holds


def test_order_needs_confidence_not_only_means() -> None:
    real = [0.0, 100.0, 0.0, 0.0]
    levels = {"real": real, "disturbed": [1.0, 90.0, 1.0, 1.0], "swapped": [2.0, 40.0, 2.0, 2.0]}
    order = order_of(levels, "higher")
    assert order.means["real"] > order.means["disturbed"] > order.means["swapped"]
    assert "95 %" in order.why


def test_order_needs_three_clips() -> None:
    assert "3 are needed" in order_of({"real": [3, 3], "disturbed": [2, 2], "swapped": [1, 1]}, "higher").why


@settings(max_examples=30, deadline=None)
@given(NUMBERS, NUMBERS)
def test_matched_auc_counts_pairs(matched: list[float], mismatched: list[float]) -> None:
    wins = [(a > b) + 0.5 * (a == b) for a in matched for b in mismatched]
    assert matched_auc(matched, mismatched) == pytest.approx(np.mean(wins))
