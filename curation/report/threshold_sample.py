"""Data for the report page's movable thresholds: histograms of the signals, and a sample of the clips.

Values are coded as positions on a scale of about a hundred thresholds, one byte each. A comparison with a
position gives exactly the result of comparing the measured value. A corpus of at most `limit` clips is
included completely, a larger one as a stratified sample with weights. Clips that only one rule rejects are
sampled more often: a looser threshold adds them.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniavgen.curation.policy.rules import Policy, Rule
from uniavgen.curation.policy.verdicts import MISSING, NOT_APPLIED, rule_outcomes
from uniavgen.shards.corpus.signals import SIGNALS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

POSITIONS = 100
"""Approximate number of positions of a threshold: one is two or three pixels wide. Heuristic."""

COMPARE, PASSES, FAILS = range(3)
"""A clip's state under a rule: compare its value with the bounds, or pass or fail at any bounds."""


@dataclass(frozen=True)
class Scale:
    """Rising `positions` [p] of a threshold, and histogram `edges` [b + 1], which are among them."""

    positions: np.ndarray
    edges: np.ndarray

    @staticmethod
    def spanning(low: float, high: float, bounds: Sequence[float], bins: int) -> Scale:
        """At most `bins` equal bins from `low` to `high` in round steps.

        The policy's `bounds` are positions too.
        """
        import numpy as np

        low, high = min([low, *bounds]), max([high, *bounds])
        # floating point cannot divide a narrower range at numbers of this size
        divisible = high - low > 1e-9 * max(1.0, abs(low), abs(high))
        low, high = (low, high) if divisible else (low - 0.5, high + 0.5)
        step = _round_step((high - low) / POSITIONS)
        first, last = math.floor(low / step), math.ceil(high / step)
        per_bin = math.ceil((last - first) / bins)
        last = first + per_bin * math.ceil((last - first) / per_bin)
        digits = max(0, -math.floor(math.log10(step)))
        even = np.round(np.arange(first, last + 1) * step, digits)
        return Scale(np.unique(np.append(even, np.asarray(bounds, float))), even[::per_bin])

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Codes of values [n], unsigned [n]: 0 for NaN, 2k + 2 at position k, 2k + 1 between positions k - 1
        and k.

        A value is >= position k exactly if its code is >= 2k + 2, and <= if its code is <= 2k + 2.
        """
        import numpy as np

        dtype = np.uint8 if 2 * len(self.positions) < 255 else np.uint16
        codes = (
            1
            + np.searchsorted(self.positions, values, "left")
            + np.searchsorted(self.positions, values, "right")
        )
        return np.where(np.isnan(values), 0, codes).astype(dtype)

    def bins(self, values: np.ndarray) -> np.ndarray:
        """The bin of each value, int [n]; values outside are in the outermost bins."""
        import numpy as np

        return np.searchsorted(self.edges[1:-1], values, "right")

    def bin_of_code(self) -> list[int]:
        """The bin of each code, from code 1."""
        import numpy as np

        positions = self.positions
        between = [[positions[0] - 1], (positions[1:] + positions[:-1]) / 2, [positions[-1] + 1]]
        values = np.empty(2 * len(positions) + 1)
        values[::2], values[1::2] = np.concatenate(between), positions
        bins: list[int] = self.bins(values).tolist()
        return bins


def make_histogram(
    values: np.ndarray, passes: np.ndarray, bounds: Sequence[float], bins: int
) -> tuple[Scale, dict[str, Any]]:
    """The scale of a signal, and counts of its values [n] in equal bins, for passing and failing clips
    (`passes` bool [n]).

    The range excludes the rarest 0.2 % at either end; the outermost bins count them. NaN and infinite values
    are `missing`.
    """
    import numpy as np

    known = np.isfinite(values)
    measured = values[known]
    low, high = np.quantile(measured, [0.002, 0.998]).tolist() if len(measured) else (0.0, 1.0)
    scale = Scale.spanning(low, high, bounds, bins)
    count = len(scale.edges) - 1
    histogram = {
        "edges": scale.edges.tolist(),
        "passing": np.bincount(scale.bins(values[known & passes]), minlength=count).tolist(),
        "failing": np.bincount(scale.bins(values[known & ~passes]), minlength=count).tolist(),
        "count": len(measured),
        "missing": len(values) - len(measured),
    }
    return scale, histogram


def is_movable(rule: Rule) -> bool:
    """Whether the report page can move the rule's bounds: it has only `min` or `max`, on a signal."""
    has_bounds = rule.min is not None or rule.max is not None
    return has_bounds and rule.column in SIGNALS and rule.equals is None and rule.one_of is None


def make_threshold_data(
    clips: pa.Table, policy: Policy, scales: dict[str, Scale], limit: int
) -> dict[str, Any]:
    """Data from which the report page recomputes the yield at other thresholds.

    `clips`: the columns that the policy reads, in random order. `scales`: by column, of every movable rule.

    Returns `clips` (sampled), `total`, `seconds` and `stratum` (packed, one per clip), `strata` (each with
    `sampled`, `clips`, and `seconds` per sampled second), `columns` (`positions`, `bins` of codes, packed
    `codes`), `rules` (`name`, `column` if movable, `min` and `max` as positions, packed `states` unless every
    clip is compared).
    """
    import numpy as np

    judged = rule_outcomes(clips, policy)
    outcomes = np.stack([judged[f"k{i}"].to_numpy() for i in range(len(policy.rules))])
    seconds = clips["end_s"].to_numpy() - clips["start_s"].to_numpy()
    stratum = _stratify(outcomes)
    chosen = _draw(stratum, limit)
    count = len(policy.rules) + 2
    clips_of, sampled_of = (np.bincount(rows, minlength=count) for rows in (stratum, stratum[chosen]))
    seconds_of = np.bincount(stratum, weights=seconds, minlength=count)
    sampled_seconds_of = np.bincount(stratum[chosen], weights=seconds[chosen], minlength=count)
    sampled_clips = clips.take(chosen)
    columns = {}
    for name, scale in scales.items():
        codes = scale.codes(sampled_clips[name].to_numpy(zero_copy_only=False).astype(float))
        columns[name] = {
            "positions": scale.positions.tolist(),
            "bins": scale.bin_of_code(),
            "codes": pack_array(codes),
        }
    return {
        "clips": len(chosen),
        "total": len(seconds),
        "ids": sampled_clips["clip_id"].to_pylist(),
        "seconds": pack_array(seconds[chosen].astype("<f4")),
        "stratum": pack_array(stratum[chosen].astype("<u2")),
        "strata": [
            {
                "sampled": int(sampled_of[i]),
                "clips": int(clips_of[i]),
                "seconds": float(seconds_of[i] / sampled_seconds_of[i]) if sampled_seconds_of[i] else 0.0,
            }
            for i in range(count)
        ],
        "columns": columns,
        "rules": [
            _rule_data(rule, outcomes[i][chosen], scales.get(rule.column) if is_movable(rule) else None)
            for i, rule in enumerate(policy.rules)
        ],
    }


def pack_array(values: np.ndarray) -> list[str]:
    """An array for JavaScript: the name of its typed array, and its little-endian bytes in base64."""
    names = {"u1": "Uint8Array", "u2": "Uint16Array", "f4": "Float32Array"}
    little_endian = values.astype(values.dtype.newbyteorder("<"))
    return [names[values.dtype.str[1:]], base64.b64encode(little_endian.tobytes()).decode()]


def _rule_data(rule: Rule, outcomes: np.ndarray, scale: Scale | None) -> dict[str, Any]:
    """One rule, with its outcomes [n] for the sampled clips; `scale` only if it is movable."""
    import numpy as np

    if scale is None:
        states = np.where(outcomes < MISSING, PASSES, FAILS).astype(np.uint8)
        return {"name": rule.name, "column": "", "states": pack_array(states)}
    # a missing value fails by its code; with `when`, what is missing can be a column of the condition
    states = np.select([outcomes == NOT_APPLIED, outcomes == MISSING], [PASSES, FAILS], COMPARE).astype(
        np.uint8
    )
    bounds = {bound: value for bound in ("min", "max") if (value := getattr(rule, bound)) is not None}
    positions = {bound: int(np.searchsorted(scale.positions, value)) for bound, value in bounds.items()}
    return {
        "name": rule.name,
        "column": rule.column,
        "states": pack_array(states) if rule.when else None,
        **positions,
    }


def _stratify(outcomes: np.ndarray) -> np.ndarray:
    """Stratum of each clip, int [n], from outcomes [r, n]: r passes every rule, 0..r-1 fails only that rule,
    r + 1 fails several.
    """
    import numpy as np

    failing = outcomes >= MISSING
    count = failing.sum(axis=0)
    return np.select([count == 0, count == 1], [len(outcomes), failing.argmax(axis=0)], len(outcomes) + 1)


def _draw(stratum: np.ndarray, limit: int) -> np.ndarray:
    """Rising indices of the sampled clips: all, or the first clips of every stratum by its quota."""
    import numpy as np

    if len(stratum) <= limit:
        return np.arange(len(stratum))
    sizes = np.bincount(stratum)
    quota = _quotas(sizes, limit)
    order = np.argsort(stratum, kind="stable")
    rank = np.arange(len(stratum)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < quota[stratum[order]]])


def _quotas(sizes: np.ndarray, limit: int) -> np.ndarray:
    """Clips to sample of each stratum: proportional to the root of its size, at least one, at most all."""
    import numpy as np

    quota = np.minimum(sizes, 1)
    unfilled = sizes > quota
    while unfilled.any() and quota.sum() < limit:
        roots = np.where(unfilled, np.sqrt(sizes), 0)
        more = np.floor((limit - quota.sum()) * roots / roots.sum()).astype(int)
        if not more.any():
            break
        quota = np.minimum(sizes, quota + more)
        unfilled = sizes > quota
    return quota


def _round_step(smallest: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `smallest`."""
    power = 10.0 ** math.floor(math.log10(smallest))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= smallest * (1 - 1e-9))
