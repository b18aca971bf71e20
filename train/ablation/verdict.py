"""Statistics of an ablation: intervals over seeds, and whether an order that the paper reports is reproduced.

Rows of one seed share data, branches and noise, so two rows are compared by their differences within each
seed. Intervals are Student's, for few seeds. They are not corrected for the number of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

from uniavgen.shards.errors import UserError

Judgement = Literal["reproduced", "undecided", "reversed"]

CONFIDENT = 0.95
"""Probability from which an order counts as reproduced."""


@dataclass(frozen=True)
class Interval:
    """Mean of a few values and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """Result for the order of two rows: difference better - worse with its 95 % interval, and the confidence
    that it is positive (one-sided Student's t over seeds)."""

    better: str
    worse: str
    role: str
    difference: Interval
    confidence: float
    seeds: int

    @property
    def judgement(self) -> Judgement:
        if self.confidence >= CONFIDENT:
            return "reproduced"
        return "reversed" if self.confidence <= 1 - CONFIDENT else "undecided"


def interval(values: Sequence[float]) -> Interval:
    """Mean and Student's 95 % interval. Raises UserError for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        raise UserError(
            f"an interval needs two values, got {len(values)}", hint="use more seeds", kind="too-few-seeds"
        )
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return Interval(mean(values), mean(values) - half, mean(values) + half)


def confidence_positive(values: Sequence[float]) -> float:
    """Probability that the true mean is above 0: one-sided Student's t; 0, 0.5 or 1 for equal values."""
    from scipy.stats import t

    average, spread = mean(values), stdev(values)
    if spread == 0:
        return 0.5 if average == 0 else float(average > 0)
    return float(t.cdf(average / (spread / math.sqrt(len(values))), len(values) - 1))


def compare(
    better: str, worse: str, role: str, values_better: Sequence[float], values_worse: Sequence[float]
) -> Verdict:
    """The verdict on two rows. Values are in the same order of seeds; larger values are better."""
    if len(values_better) != len(values_worse):
        raise UserError(
            f"{better} has {len(values_better)} seeds, {worse} {len(values_worse)}", kind="unpaired-seeds"
        )
    differences = [a - b for a, b in zip(values_better, values_worse, strict=True)]
    return Verdict(
        better, worse, role, interval(differences), confidence_positive(differences), len(differences)
    )
