"""A forecast is exact where sources are alike, honest about its range where they are not, and drawn over all sizes."""

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
def test_chosen_sources_are_different_known_and_always_the_same(
    sizes: dict[str, int | None], count: int, seed: int
) -> None:
    chosen = choose(sizes, count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, len(sizes))
    assert set(chosen) <= set(sizes)
    assert chosen == choose(sizes, count, seed)


@given(
    st.lists(st.integers(0, 10**9), min_size=8, max_size=80, unique=True),
    st.integers(2, 8),
    st.integers(0, 5),
)
def test_one_source_is_drawn_of_every_group_of_sizes(sizes: list[int], count: int, seed: int) -> None:
    chosen = choose({str(size): size for size in sizes}, count, seed)
    ordered = sorted(sizes)
    edges = [round(i * len(ordered) / count) for i in range(count + 1)]
    groups = [set(ordered[low:high]) for low, high in pairwise(edges)]
    assert [len(group & {int(name) for name in chosen}) for group in groups] == [1] * count


def alike(size: int, scale: float = 1.0) -> Sampled:
    """A source of which everything grows with its bytes: 1 s, a tenth of a clip of 0.6 s, and 2 + 1 s of work per 100 kB."""
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
def test_a_forecast_of_like_sources_is_exact_and_its_range_is_a_point(
    sampled: list[int], rest: list[int]
) -> None:
    told = predict([alike(size) for size in sampled], list(rest), start_s=36.0, workers_busy=1.5)
    units = sum(rest) / 1e5
    truth = {
        "video_h": units / 3600,
        "clip_h": 0.6 * units / 3600,
        "kept_h": 0.3 * units / 3600,
        "work_h": 3 * units / 3600,
    }
    truth |= {"media_gb": 5e4 * units / 1e9, "wall_h": (36 + 2 * units) / 3600 if rest else 0.0}
    for name, value in truth.items():
        estimate = told.figures[name]
        assert (estimate.low, estimate.mid, estimate.high) == pytest.approx(
            (value, value, value), rel=1e-4
        ), name
    assert (told.sources, told.slowest_step, told.slowest_share) == (len(rest), "faces", pytest.approx(2 / 3))


def test_failures_are_foreseen_and_lower_the_yield() -> None:
    good = [alike(10**7) for _ in range(6)]
    bad = [Sampled(10**7, failed=True), Sampled(10**7, failed=True)]
    rest: list[int | None] = [10**7] * 80
    told = predict([*good, *bad], rest, 0.0, 1.0)
    assert told.figures["failures"].mid == pytest.approx(20)
    assert told.figures["failures"].low < 20 < told.figures["failures"].high
    assert told.figures["clips"].mid == pytest.approx(60)


def failures_foreseen(failed: int, sampled: int) -> Estimate:
    sources = [Sampled(10**6, failed=i < failed) for i in range(sampled)]
    return predict(sources, [10**6] * 1000, 0.0, 1.0).figures["failures"]


def test_a_sample_without_failures_does_not_promise_that_none_comes() -> None:
    few, many, all_bad = failures_foreseen(0, 5), failures_foreseen(0, 50), failures_foreseen(5, 5)
    assert (few.low, few.mid) == (many.low, many.mid) == (0.0, 0.0)
    assert 0 < many.high < few.high < 1000
    assert (1000 - few.high, 1000.0) == pytest.approx((all_bad.low, all_bad.high))


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3, 0.5])
def test_the_range_of_failures_holds_the_true_rate_in_most_samples(rate: float) -> None:
    """Exact coverage: over all outcomes of 20 sources, each with its binomial probability."""
    ranges = [failures_foreseen(failed, 20) for failed in range(21)]
    chances = [comb(20, failed) * rate**failed * (1 - rate) ** (20 - failed) for failed in range(21)]
    held = sum(
        chance for chance, told in zip(chances, ranges, strict=True) if told.low <= 1000 * rate <= told.high
    )
    assert held >= 0.8


def test_a_source_of_unknown_size_counts_as_a_typical_one() -> None:
    told = predict([alike(10**7)], [10**7, None, 10**7], 0.0, 1.0)
    assert told.figures["clips"].mid == pytest.approx(3)


def test_the_range_holds_the_truth_about_as_often_as_it_says() -> None:
    """Sources of very different sizes and bitrates; 90 % is meant, a bootstrap over 20 gives a little less."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(60):
        sizes = (10 ** rng.uniform(6, 8, 400)).astype(int)
        population = {str(i): alike(int(size), float(rng.lognormal(0, 0.5))) for i, size in enumerate(sizes)}
        chosen = choose({name: source.bytes for name, source in population.items()}, 20, trial)
        rest = [source for name, source in population.items() if name not in chosen]
        told = predict([population[name] for name in chosen], [source.bytes for source in rest], 0.0, 1.0)
        truth = sum(source.video_s for source in rest) / 3600
        held += told.figures["video_h"].low <= truth <= told.figures["video_h"].high
    assert 0.7 <= held / 60 <= 1.0


@given(st.floats(0, 60), st.floats(0.2, 64), st.floats(10, 1000))
def test_the_pace_is_read_where_loading_and_the_last_source_do_not_weigh(
    start_s: float, busy: float, work_s: float
) -> None:
    steady = [(start_s + done / busy, done) for done in np.linspace(0, 0.95 * work_s, 200)]
    tail = [
        (steady[-1][0] + wait, 0.95 * work_s + wait * 0.05 * work_s / 500) for wait in np.linspace(1, 500, 50)
    ]
    assert pace([*steady, *tail]) == pytest.approx((start_s, busy), rel=0.02, abs=0.02 * work_s / busy)
    assert pace([]) == pace([(3.0, 0.0)]) == (0.0, 1.0)


def test_nothing_measured_is_no_forecast() -> None:
    with pytest.raises(ValueError, match="nothing was sampled"):
        predict([], [1], 0.0, 1.0)
