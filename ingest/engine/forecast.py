"""Forecast of an ingest's yield and cost from a measured sample of its sources. Pure functions.

Every quantity is assumed to grow with a source's bytes (a ratio estimator over a sample spread evenly over
the sizes). The range is the bootstrap's 5 to 95 % over the measured sources; for failures it is Jeffreys'
interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

DRAWS = 2000
"""Resamples of the bootstrap. Heuristic: the ends of the range vary by about 1 % from seed to seed."""

RANGE = (5.0, 95.0)
"""Percentiles of the resamples at the ends of the range."""


@dataclass(frozen=True)
class Sampled:
    """One measured source: its size, yield and cost. A failed one has no yield."""

    bytes: int
    video_s: float = 0.0
    clips: int = 0
    clip_s: float = 0.0
    kept_s: float = 0.0
    """Seconds of the clips that the policy keeps."""
    media_bytes: int = 0
    """Size of the cut clips."""
    stored_bytes: int = 0
    """Size of the step cache."""
    failed: bool = False
    step_seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """A figure and its range; all three are equal for a sample of one source, which has no spread."""

    low: float
    mid: float
    high: float


@dataclass(frozen=True)
class Forecast:
    """Figures of `sources` further sources, by name and unit, and the step that takes the most work."""

    sources: int
    sampled: int
    figures: dict[str, Estimate]
    slowest_step: str
    slowest_share: float
    """Its share of all working seconds."""
    work_share: dict[str, float]
    """Share of the working seconds by step."""


def choose(sizes: Mapping[str, int | None], count: int, seed: int) -> list[str]:
    """`count` names spread evenly over the sizes: one drawn from each of `count` groups of similar size.

    All names if there are at most `count`. A source of unknown size counts as the median one.
    """
    typical = _typical(sizes.values())
    ordered = sorted(sizes, key=lambda name: (typical if sizes[name] is None else sizes[name], name))
    if count >= len(ordered):
        return ordered
    rng = np.random.default_rng(seed)
    edges = [round(i * len(ordered) / count) for i in range(count + 1)]
    return [ordered[rng.integers(low, high)] for low, high in pairwise(edges)]


def predict(
    sampled: Sequence[Sampled],
    remaining: Sequence[int | None],
    start_s: float,
    workers_busy: float,
    seed: int = 0,
) -> Forecast:
    """Yield and cost of the remaining sources, whose sizes are `remaining`.

    `start_s` is the time until work begins, `workers_busy` the mean number of busy workers from then on.
    Figures: `video_h`, `wall_h`, `work_h` (all workers' time), `clips`, `clip_h`, `kept_h`, `kept_share`
    (of clip time), `media_gb` (10^9 bytes), `stored_gb`, `failures`. Raises ValueError without any sampled
    source.
    """
    if not sampled:
        raise ValueError("nothing was sampled")
    steps = sorted({name for source in sampled for name in source.step_seconds})
    table = np.array([_row(source, steps) for source in sampled], float)
    scale = _remaining_bytes(sampled, remaining)
    drawn = np.random.default_rng(seed).integers(0, len(sampled), (DRAWS, len(sampled)))
    sums = np.stack([table.sum(axis=0), *table[drawn].sum(axis=1)])  # the sample itself, then its resamples
    estimates = _figures(_totals(sums, len(sampled), scale, len(remaining)), start_s, workers_busy)
    ends = np.percentile(estimates[1:], RANGE, axis=0)
    figures = {
        name: Estimate(*map(float, row))
        for name, row in zip(_FIGURES, np.stack([ends[0], estimates[0], ends[1]]).T, strict=True)
    }
    figures["failures"] = _failures(sum(source.failed for source in sampled), len(sampled), len(remaining))
    work = table[:, len(_COLUMNS) :].sum(axis=0)
    share = (
        {name: float(seconds / work.sum()) for name, seconds in zip(steps, work, strict=True)}
        if work.sum()
        else {}
    )
    slowest = max(share, key=lambda name: share[name], default="")
    return Forecast(len(remaining), len(sampled), figures, slowest, share.get(slowest, 0.0), share)


def pace(history: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Start of work in seconds, and mean number of busy workers from then on.

    `history` holds rising pairs (seconds since the start, seconds worked by all workers). Both results are
    read between a tenth and nine tenths of the work, without the loading of models and the wait for the last
    source. (0, 1) if nothing was done.
    """
    if not history or history[-1][1] <= 0:
        return 0.0, 1.0
    elapsed, worked = np.array([(0.0, 0.0), *history]).T
    ends = np.array([0.1, 0.9]) * worked[-1]
    first, last = np.interp(ends, worked, elapsed)
    busy = float((ends[1] - ends[0]) / max(last - first, 1e-9))
    return float(max(0.0, first - ends[0] / busy)), busy


_COLUMNS = ("bytes", "failed", "video_s", "clips", "clip_s", "kept_s", "media_bytes", "stored_bytes")
_FIGURES = (
    "failures",
    "video_h",
    "clips",
    "clip_h",
    "kept_h",
    "kept_share",
    "media_gb",
    "stored_gb",
    "work_h",
    "wall_h",
)


def _row(source: Sampled, steps: Sequence[str]) -> list[float]:
    return [
        *(float(getattr(source, name)) for name in _COLUMNS),
        *(source.step_seconds.get(name, 0.0) for name in steps),
    ]


def _totals(sums: np.ndarray, count: int, remaining_bytes: float, remaining_count: int) -> np.ndarray:
    """Totals of the remaining sources, [draws, columns - 1]: failures scale by count, all else by bytes."""
    size = sums[:, :1]
    totals: np.ndarray = sums[:, 1:] * np.where(
        size > 0, remaining_bytes / np.maximum(size, 1), remaining_count / count
    )
    totals[:, 0] = sums[:, 1] * remaining_count / count
    return totals


def _figures(totals: np.ndarray, start_s: float, workers_busy: float) -> np.ndarray:
    """Figures in the order of `_FIGURES`, [draws, figures]."""
    failures, video_s, clips, clip_s, kept_s, media, stored = totals[:, : len(_COLUMNS) - 1].T
    work_s = totals[:, len(_COLUMNS) - 1 :].sum(axis=1)
    wall_s = np.where(work_s > 0, start_s + work_s / workers_busy, 0.0)
    share = np.divide(kept_s, clip_s, out=np.zeros_like(kept_s), where=clip_s > 0)
    hours = [video_s / 3600, clips, clip_s / 3600, kept_s / 3600]
    return np.stack(
        [failures, *hours, share, media / 1e9, stored / 1e9, work_s / 3600, wall_s / 3600], axis=1
    )


def _failures(failed: int, sampled: int, remaining: int) -> Estimate:
    """Expected failures. The range is Jeffreys' interval: a bootstrap of no failures has no spread."""
    from scipy.stats import beta

    ends = beta.ppf(np.array(RANGE) / 100, failed + 0.5, sampled - failed + 0.5)
    low, high = ends[0] if failed else 0.0, ends[1] if failed < sampled else 1.0
    return Estimate(float(low * remaining), failed / sampled * remaining, float(high * remaining))


def _remaining_bytes(sampled: Sequence[Sampled], remaining: Sequence[int | None]) -> float:
    """Bytes of the remaining sources; one of unknown size counts as the median of the known ones."""
    typical = _typical([*remaining, *(source.bytes for source in sampled)])
    return float(sum(typical if size is None else size for size in remaining))


def _typical(sizes: Iterable[int | None]) -> float:
    known = [size for size in sizes if size is not None]
    return float(np.median(known)) if known else 0.0
