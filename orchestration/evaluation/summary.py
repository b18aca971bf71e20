"""From results to scores: one line per metric with its controls, and the same by slice of conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from uniavgen.orchestration.evaluation.catalog import METRICS
from uniavgen.orchestration.evaluation.controls import CODEC, LEVELS
from uniavgen.orchestration.evaluation.distributions import frechet_distance
from uniavgen.orchestration.evaluation.results import GENERATED, Result
from uniavgen.orchestration.evaluation.statistics import (
    Order,
    Score,
    order_of,
    order_of_means,
    score_of,
    set_score,
)
from uniavgen.orchestration.evaluation.videos import Item

MIN_SLICE = 2
"""Fewest videos of a slice that gets a score."""


@dataclass(frozen=True)
class MetricScore:
    """A metric of the generated videos beside its controls. It is reported only if `order` holds."""

    metric: str
    score: Score
    order: Order
    codec: Score | None = None

    @property
    def reported(self) -> bool:
        return self.order.holds

    def as_dict(self) -> dict[str, Any]:
        """Plain values; NaN of an interval as None."""
        spec = METRICS[self.metric]
        return {
            "metric": self.metric,
            "network": spec.network,
            "unit": spec.unit,
            "better": spec.better,
            "reported": self.reported,
            "why_not": self.order.why,
            "score": _plain(self.score) if self.reported else None,
            "controls": {name: _finite(mean) for name, mean in self.order.means.items()},
            "control_clips": self.order.count,
            "codec": _plain(self.codec) if self.codec else None,
        }


def metric_scores(results: Sequence[Result]) -> list[MetricScore]:
    """Every metric that was measured in a generated video, in the order of the catalogue."""
    scores = []
    for metric, spec in METRICS.items():
        generated = values_of(results, metric, GENERATED)
        if spec.of_set:
            scores += _set_scores(metric, results)
        elif generated:
            order = order_of(paired_levels(results, metric), spec.better)
            codec = values_of(results, metric, CODEC)
            scores.append(MetricScore(metric, _score(generated), order, _score(codec) if codec else None))
    return scores


def values_of(results: Iterable[Result], metric: str, level: str) -> dict[str, tuple[float, float]]:
    """Value and weight of a metric by video at a level."""
    return {
        result.name: result.values[metric]
        for result in results
        if result.level == level and metric in result.values
    }


def paired_levels(results: Sequence[Result], metric: str) -> dict[str, list[float]]:
    """Values at each control level, of the real clips that have one at every level, in one order."""
    levels = {level: values_of(results, metric, level) for level in LEVELS}
    names = sorted(set.intersection(*(set(values) for values in levels.values())))
    return {level: [values[name][0] for name in names] for level, values in levels.items()}


def band_of(value: float, edges: Sequence[float]) -> str:
    """The name of the band between two edges that a value is in."""
    index = int(np.searchsorted(edges, value, side="right"))
    low = f"{edges[index - 1]:.4g}" if index else ""
    high = f"{edges[index]:.4g}" if index < len(edges) else ""
    if low and high:
        return f"{low} to {high}"
    return f"from {low}" if low else f"below {high}"


def slices(
    results: Sequence[Result],
    items: Sequence[Item],
    by: Sequence[str],
    metrics: Sequence[str],
    bands: int = 3,
) -> list[dict[str, Any]]:
    """Scores of generated videos by condition: rows of condition, slice, metric and score.

    A numeric condition is cut into `bands` of equal count. Slices of one video are left out.
    """
    rows = []
    for condition in by:
        groups = slice_names(items, condition, bands)
        for name in sorted(set(groups.values())):
            inside = {item for item, group in groups.items() if group == name}
            for metric in metrics:
                values = {
                    video: value
                    for video, value in values_of(results, metric, GENERATED).items()
                    if video in inside
                }
                if len(values) >= MIN_SLICE:
                    score = _plain(_score(values))
                    rows.append({"condition": condition, "slice": name, "metric": metric, "score": score})
    return rows


def slice_names(items: Sequence[Item], condition: str, bands: int) -> dict[str, str]:
    """Slice of every video that has the condition: its value, or the band that a number is in."""
    values = {item.name: item.conditions[condition] for item in items if condition in item.conditions}
    numbers = [value for value in values.values() if isinstance(value, float)]
    if not values or len(numbers) < len(values):
        return {name: str(value) for name, value in values.items()}
    edges = np.unique(np.quantile(numbers, np.linspace(0, 1, bands + 1)[1:-1])).tolist()
    return {name: band_of(float(value), edges) for name, value in values.items()}


def _set_scores(metric: str, results: Sequence[Result]) -> list[MetricScore]:
    """FD of generated clips to real ones; controls are one half of the real clips against the other."""
    rows = {level: vectors_of(results, metric, level) for level in (GENERATED, CODEC, *LEVELS)}
    if len(rows[GENERATED]) < 2 or len(rows["real"]) < 4:
        return []
    names = sorted(rows["real"])
    odd, even = names[1::2], names[0::2]
    reference = np.array([rows["real"][name] for name in odd])
    means = {}
    for level in LEVELS:
        part = [rows[level][name] for name in even if name in rows[level]]
        means[level] = frechet_distance(np.array(part), reference) if len(part) > 1 else np.nan
    real = np.array([rows["real"][name] for name in names])

    def distance(vectors: np.ndarray) -> float:
        return frechet_distance(vectors, real)

    generated = set_score(np.array(list(rows[GENERATED].values())), distance)
    coded = np.array(list(rows[CODEC].values()))
    codec = set_score(coded, distance) if len(coded) > 1 else None
    return [MetricScore(metric, generated, order_of_means(means, "lower", len(names)), codec)]


def vectors_of(results: Iterable[Result], metric: str, level: str) -> dict[str, list[float]]:
    """Vector of a metric of sets by video at a level."""
    return {r.name: r.vectors[metric] for r in results if r.level == level and metric in r.vectors}


def _score(values: Mapping[str, tuple[float, float]]) -> Score:
    return score_of([value for value, _ in values.values()], [weight for _, weight in values.values()])


def _plain(score: Score) -> dict[str, float | int | None]:
    return {name: _finite(value) for name, value in asdict(score).items()}


def _finite(value: Any) -> Any:
    return value if np.isfinite(value) else None
