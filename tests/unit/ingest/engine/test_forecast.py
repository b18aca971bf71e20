"""Forecast: exact for similar sources, with a calibrated range for others, sampled over all sizes."""

from itertools import pairwise
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.ingest.engine.forecast import Estimate, Sampled, choose, pace, predict

names = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=6), st.one_of(st.none(), st.integers(0, 10**9)), max_size=40
)


@given(names, st.integers(1, 50), st.integers(0, 5))
def test_choice_is_distinct_and_deterministic(sizes: dict[str, int | None], count: int, seed: int) -> None:
    chosen = choose(sizes, count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(sizes))
    assert set(chosen) <= set(sizes)
    assert chosen == choose(sizes, count, seed)


@given(
    st.lists(st.integers(0, 10**9), min_size=8, max_size=80, unique=True),
    st.integers(2, 8),
    st.integers(0, 5),
)
def test_one_source_is_chosen_from_every_size_group(sizes: list[int], count: int, seed: int) -> None:
    chosen = choose({str(size): size for size in sizes}, count, seed)
    ordered = sorted(sizes)
    edges = [round(i * len(ordered) / count) for i in range(count + 1)]
    groups = [set(ordered[low:high]) for low, high in pairwise(edges)]
    assert [len(group & {int(name) for name in chosen}) for group in groups] == [1] * count


def alike(size: int, scale: float = 1.0) -> Sampled:
    """A source whose yield and cost are proportional to its bytes: 1 s and 2 + 1 s of work per 100 kB."""
    unit = size / 1e5 * scale
    return Sampled(
        size,
        unit,
        1,
        0.6 * unit,
        0.3 * unit,
        int(5e4 * unit),
        int(2e4 * unit),
        False,
        {"faces": 2 * unit, "cut": unit},
    )


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.integers(10**5, 10**8), min_size=1, max_size=9),
    st.lists(st.integers(10**5, 10**8), max_size=30),
)
def test_forecast_of_similar_sources_is_exact(sampled: list[int], rest: list[int]) -> None:
    forecast = predict([alike(size) for size in sampled], list(rest), start_s=36.0, workers_busy=1.5)
    units = sum(rest) / 1e5
    truth = {
        "video_h": units / 3600,
        "clip_h": 0.6 * units / 3600,
        "kept_h": 0.3 * units / 3600,
        "work_h": 3 * units / 3600,
    }
    truth |= {"media_gb": 5e4 * units / 1e9, "wall_h": (36 + 2 * units) / 3600 if rest else 0.0}
    for name, value in truth.items():
        estimate = forecast.figures[name]
        assert (estimate.low, estimate.mid, estimate.high) == pytest.approx(
            (value, value, value), rel=1e-4
        ), name
    assert (forecast.sources, forecast.slowest_step, forecast.slowest_share) == (
        len(rest),
        "faces",
        pytest.approx(2 / 3),
    )


def test_forecast_includes_failures() -> None:
    good = [alike(10**7) for _ in range(6)]
    bad = [Sampled(10**7, failed=True), Sampled(10**7, failed=True)]
    rest: list[int | None] = [10**7] * 80
    forecast = predict([*good, *bad], rest, 0.0, 1.0)
    assert forecast.figures["failures"].mid == pytest.approx(20)
    assert forecast.figures["failures"].low < 20 < forecast.figures["failures"].high
    assert forecast.figures["clips"].mid == pytest.approx(60)


def expected_failures(failed: int, sampled: int) -> Estimate:
    sources = [Sampled(10**6, failed=i < failed) for i in range(sampled)]
    return predict(sources, [10**6] * 1000, 0.0, 1.0).figures["failures"]


def test_sample_without_failures_has_a_range_of_failures() -> None:
    few, many, all_bad = expected_failures(0, 5), expected_failures(0, 50), expected_failures(5, 5)
    assert (few.low, few.mid) == (many.low, many.mid) == (0.0, 0.0)
    assert 0 < many.high < few.high < 1000
    assert (1000 - few.high, 1000.0) == pytest.approx((all_bad.low, all_bad.high))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5])
def test_range_of_failures_covers_true_rate(rate: float) -> None:
    """Exact coverage: over all outcomes of 20 sources, each with its binomial probability."""
    ranges = [expected_failures(failed, 20) for failed in range(21)]
    chances = [comb(20, failed) * rate**failed * (1 - rate) ** (20 - failed) for failed in range(21)]
    covered = sum(
        chance
        for chance, forecast in zip(chances, ranges, strict=True)
        if forecast.low <= 1000 * rate <= forecast.high
    )
    assert covered >= 0.8


def test_source_of_unknown_size_counts_as_median() -> None:
    forecast = predict([alike(10**7)], [10**7, None, 10**7], 0.0, 1.0)
    assert forecast.figures["clips"].mid == pytest.approx(3)


def test_range_covers_truth_about_as_often_as_stated() -> None:
    """Very different sizes and bitrates. Nominal coverage is 90 %; a bootstrap over 20 has less."""
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        sizes = (10 ** rng.uniform(6, 8, 400)).astype(int)
        population = {str(i): alike(int(size), float(rng.lognormal(0, 0.5))) for i, size in enumerate(sizes)}
        chosen = choose({name: source.bytes for name, source in population.items()}, 20, trial)
        rest = [source for name, source in population.items() if name not in chosen]
        forecast = predict([population[name] for name in chosen], [source.bytes for source in rest], 0.0, 1.0)
        truth = sum(source.video_s for source in rest) / 3600
        covered += forecast.figures["video_h"].low <= truth <= forecast.figures["video_h"].high
    assert 0.7 <= covered / 60 <= 1.0


@given(st.floats(0, 60), st.floats(0.2, 64), st.floats(10, 1000))
def test_pace_ignores_loading_and_last_source(start_s: float, busy: float, work_s: float) -> None:
    steady = [(start_s + done / busy, done) for done in np.linspace(0, 0.95 * work_s, 200)]
    tail = [
        (steady[-1][0] + wait, 0.95 * work_s + wait * 0.05 * work_s / 500) for wait in np.linspace(1, 500, 50)
    ]
    assert pace([*steady, *tail]) == pytest.approx((start_s, busy), rel=0.02, abs=0.02 * work_s / busy)
    assert pace([]) == pace([(3.0, 0.0)]) == (0.0, 1.0)


def test_forecast_without_sample_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing was sampled"):
        predict([], [1], 0.0, 1.0)
