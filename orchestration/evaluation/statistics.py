"""Scores of a set of clips: weighted mean, bootstrap interval, and the order test of a metric's controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
CONFIDENCE = 0.95
MIN_CONTROLS = 3
"""Fewest real clips with which an order is tested. Heuristic: a mean of two has no useful interval."""


@dataclass(frozen=True)
class Score:
    """A metric over a set: value, 95 % bootstrap interval and number of clips. NaN bounds for one clip."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Order:
    """Means of a metric on its controls, and whether they are ordered real > disturbed > swapped.

    `why` says what fails, "" where the order holds.
    """

    means: Mapping[str, float]
    count: int
    why: str

    @property
    def holds(self) -> bool:
        return not self.why


def weighted_mean(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> np.ndarray:
    """Sum of weighted values over the sum of weights, along `axis`."""
    return np.asarray((values * weights).sum(axis=axis) / weights.sum(axis=axis))


def score_of(values: Sequence[float], weights: Sequence[float] | None = None) -> Score:
    """Weighted mean of one value per clip, with the percentile bootstrap over clips. Raises ValueError if
    empty.
    """
    from scipy.stats import bootstrap

    if not len(values):
        raise ValueError("no values")
    data = np.asarray(values, np.float64)
    weight = np.ones(len(data)) if weights is None else np.asarray(weights, np.float64)
    mean = float(weighted_mean(data, weight))
    if len(data) == 1:
        return Score(mean, np.nan, np.nan, 1)
    interval = bootstrap(
        (data, weight),
        weighted_mean,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Score(mean, float(interval.low), float(interval.high), len(data))


def set_score(rows: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int = 200) -> Score:
    """A statistic of a whole set of rows [n, d], with the percentile bootstrap over its rows."""
    rng = np.random.default_rng(0)
    value = statistic(rows)
    if len(rows) < 3:
        return Score(value, np.nan, np.nan, len(rows))
    drawn = [statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(resamples)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Score(value, float(low), float(high), len(rows))


def order_of(levels: Mapping[str, Sequence[float]], better: str) -> Order:
    """Order test of paired controls: clip i of every level comes from the same real clip.

    `levels` has `real`, `disturbed` and `swapped`; `better` is `higher` or `lower`. The order holds if the
    means are strictly ordered and the interval of real minus swapped excludes 0.
    """
    means = {name: float(np.mean(values)) if len(values) else np.nan for name, values in levels.items()}
    count = min(len(levels[name]) for name in ("real", "disturbed", "swapped"))
    order = order_of_means(means, better, count)
    sign = 1.0 if better == "higher" else -1.0
    if order.holds:
        difference = sign * (np.asarray(levels["real"], float) - np.asarray(levels["swapped"], float))
        if not score_of(difference.tolist()).low > 0:
            return Order(
                means, count, f"real is not better than swapped with 95 % confidence ({count} clips)"
            )
    return order


def order_of_means(means: Mapping[str, float], better: str, count: int) -> Order:
    """Order test of a metric of sets, which has one value at each level, from `count` real clips."""
    if count < MIN_CONTROLS:
        return Order(means, count, f"real clips that can be measured: {count}, {MIN_CONTROLS} are needed")
    sign = 1.0 if better == "higher" else -1.0
    for above, below in (("real", "disturbed"), ("disturbed", "swapped")):
        if not sign * (means[above] - means[below]) > 0:
            values = f"{above} {means[above]:.4g} is not better than {below} {means[below]:.4g}"
            return Order(means, count, values)
    return Order(means, count, "")


def matched_auc(matched: Sequence[float], mismatched: Sequence[float]) -> float:
    """Probability that a matched pair scores above a mismatched one, ties half: 0.5 is chance. [n], [m]."""
    from scipy.stats import mannwhitneyu

    statistic = mannwhitneyu(matched, mismatched).statistic
    return float(statistic / (len(matched) * len(mismatched)))
