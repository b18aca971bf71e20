"""What the page's movable thresholds compute with: histograms of the signals, and a sample of the clips that fits into a page.

In: the clips table's columns and a policy. Out: plain data. Values travel as their place on a scale of about a hundred
positions, one byte each, so that comparing with any position gives what comparing the measured value gives, to the last bit.
A corpus of at most `limit` clips travels whole; of a larger one a sample, each clip with its weight, so that sums estimate
the whole. Clips that one rule alone rejects are drawn more often: they are what a looser threshold brings in.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uniavgen.curation.policy.rules import MISSING, NOT_APPLIED, Policy, Rule, outcomes
from uniavgen.shards.corpus.signals import SIGNALS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

POSITIONS = 100
"""Positions that a threshold may take across its histogram, about (our choice: a position is two or three pixels)."""

ASK, PASSES, FAILS = range(3)
"""What a rule's `states` say of a clip: compare its value with the bounds; passes or fails whatever the bounds."""


@dataclass(frozen=True)
class Scale:
    """Where a threshold may stand, `positions` [p] rising, and the `edges` [b + 1] of a histogram, which are among them."""

    positions: np.ndarray
    edges: np.ndarray

    @staticmethod
    def over(low: float, high: float, lines: Sequence[float], bins: int) -> Scale:
        """At most `bins` equal bins over `low`..`high` in round steps; the `lines` (a policy's bounds) are positions too."""
        import numpy as np

        low, high = min([low, *lines]), max([high, *lines])
        # a range that numbers of this size cannot divide is one value
        apart = high - low > 1e-9 * max(1.0, abs(low), abs(high))
        low, high = (low, high) if apart else (low - 0.5, high + 0.5)
        step = _round_step((high - low) / POSITIONS)
        first, last = math.floor(low / step), math.ceil(high / step)
        per_bin = math.ceil((last - first) / bins)
        last = first + per_bin * math.ceil((last - first) / per_bin)
        digits = max(0, -math.floor(math.log10(step)))
        even = np.round(np.arange(first, last + 1) * step, digits)
        return Scale(np.unique(np.append(even, np.asarray(lines, float))), even[::per_bin])

    def codes(self, values: np.ndarray) -> np.ndarray:
        """Values [n] as places: 0 for NaN, 2k + 2 at position k, 2k + 1 between positions k - 1 and k, unsigned [n].

        A value is at least position k where its code is at least 2k + 2, and at most where it is at most that.
        """
        import numpy as np

        kind = np.uint8 if 2 * len(self.positions) < 255 else np.uint16
        places = (
            1
            + np.searchsorted(self.positions, values, "left")
            + np.searchsorted(self.positions, values, "right")
        )
        return np.where(np.isnan(values), 0, places).astype(kind)

    def bins(self, values: np.ndarray) -> np.ndarray:
        """The bin of each value, int [n]; the outermost bins hold what lies beyond them."""
        import numpy as np

        return np.searchsorted(self.edges[1:-1], values, "right")

    def bin_of_code(self) -> list[int]:
        """The bin of every code from 1 on."""
        import numpy as np

        at = self.positions
        between = np.concatenate([[at[0] - 1], (at[1:] + at[:-1]) / 2, [at[-1] + 1]])
        values = np.empty(2 * len(at) + 1)
        values[::2], values[1::2] = between, at
        found: list[int] = self.bins(values).tolist()
        return found


def histogram(
    values: np.ndarray, passes: np.ndarray, lines: Sequence[float], bins: int
) -> tuple[Scale, dict[str, Any]]:
    """Counts of a signal's values [n] in equal bins, of clips that pass every rule and of others (`passes` bool [n]).

    The range leaves out the rarest 0.2 % at either end, which the outermost bins hold. Values that are NaN or infinite count as
    `missing`. Gives the scale too.
    """
    import numpy as np

    known = np.isfinite(values)
    measured = values[known]
    low, high = np.quantile(measured, [0.002, 0.998]).tolist() if len(measured) else (0.0, 1.0)
    scale = Scale.over(low, high, lines, bins)
    count = len(scale.edges) - 1
    told = {
        "edges": scale.edges.tolist(),
        "passing": np.bincount(scale.bins(values[known & passes]), minlength=count).tolist(),
        "failing": np.bincount(scale.bins(values[known & ~passes]), minlength=count).tolist(),
        "count": len(measured),
        "missing": len(values) - len(measured),
    }
    return scale, told


def movable(rule: Rule) -> bool:
    """Whether the page can move the rule: it bounds a signal by numbers and by nothing else."""
    bounded = rule.min is not None or rule.max is not None
    return bounded and rule.column in SIGNALS and rule.equals is None and rule.one_of is None


def sample(clips: pa.Table, policy: Policy, scales: dict[str, Scale], limit: int) -> dict[str, Any]:
    """The data of the page's thresholds. `clips` are columns that the policy reads, in an order in which the first of any kind
    are as good as random; `scales` by column, of every rule that is `movable`.

    `clips` (sampled), `total`, `seconds` and `stratum` (packed, one per clip), `strata` (of each `sampled`, `clips` and the
    `seconds` that a sampled second stands for), `columns` (`positions`, `bins` of codes, packed `codes`), `rules` (`name`,
    `column` where movable, `min` and `max` as positions, packed `states` where not every clip is asked).
    """
    import numpy as np

    judged = outcomes(clips, policy)
    said = np.stack([judged[f"k{i}"].to_numpy() for i in range(len(policy.rules))])
    seconds = clips["end_s"].to_numpy() - clips["start_s"].to_numpy()
    stratum = _strata(said)
    chosen = _draw(stratum, limit)
    sizes, drawn = (np.bincount(of, minlength=len(said) + 2) for of in (stratum, stratum[chosen]))
    length, shown = (
        np.bincount(of, weights=weights, minlength=len(said) + 2)
        for of, weights in ((stratum, seconds), (stratum[chosen], seconds[chosen]))
    )
    rows = clips.take(chosen)
    columns = {}
    for name, scale in scales.items():
        codes = scale.codes(rows[name].to_numpy(zero_copy_only=False).astype(float))
        columns[name] = {
            "positions": scale.positions.tolist(),
            "bins": scale.bin_of_code(),
            "codes": pack(codes),
        }
    return {
        "clips": len(chosen),
        "total": len(seconds),
        "seconds": pack(seconds[chosen].astype("<f4")),
        "stratum": pack(stratum[chosen].astype("<u2")),
        "strata": [
            {"sampled": int(n), "clips": int(size), "seconds": float(whole / part) if part else 0.0}
            for n, size, part, whole in zip(drawn, sizes, shown, length, strict=True)
        ],
        "columns": columns,
        "rules": [
            _told(rule, said[i][chosen], scales.get(rule.column) if movable(rule) else None)
            for i, rule in enumerate(policy.rules)
        ],
    }


def pack(values: np.ndarray) -> list[str]:
    """An array for the page: the name of its typed array in the browser, and its little-endian bytes in base64."""
    names = {"u1": "Uint8Array", "u2": "Uint16Array", "f4": "Float32Array"}
    little = values.astype(values.dtype.newbyteorder("<"))
    return [names[values.dtype.str[1:]], base64.b64encode(little.tobytes()).decode()]


def _told(rule: Rule, said: np.ndarray, scale: Scale | None) -> dict[str, Any]:
    """One rule for the page; `said` are its outcomes [n] of the sampled clips, `scale` its column's where it is movable."""
    import numpy as np

    if scale is None:
        return {
            "name": rule.name,
            "column": "",
            "states": pack(np.where(said < MISSING, PASSES, FAILS).astype(np.uint8)),
        }
    # a value that is missing fails by its code; under `when`, what is missing may be what the condition reads
    states = np.select([said == NOT_APPLIED, said == MISSING], [PASSES, FAILS], ASK).astype(np.uint8)
    bounds = {bound: value for bound in ("min", "max") if (value := getattr(rule, bound)) is not None}
    places = {bound: int(np.searchsorted(scale.positions, value)) for bound, value in bounds.items()}
    return {"name": rule.name, "column": rule.column, "states": pack(states) if rule.when else None, **places}


def _strata(said: np.ndarray) -> np.ndarray:
    """The stratum of each clip, int [n], from the outcomes [r, n]: r passes every rule, 0..r-1 fails that one alone, r + 1
    fails more."""
    import numpy as np

    failing = said >= MISSING
    count = failing.sum(axis=0)
    return np.select([count == 0, count == 1], [len(said), failing.argmax(axis=0)], len(said) + 1)


def _draw(stratum: np.ndarray, limit: int) -> np.ndarray:
    """Places of the clips to show, rising: all, or the first of every stratum, as many as the root of its size asks."""
    import numpy as np

    if len(stratum) <= limit:
        return np.arange(len(stratum))
    sizes = np.bincount(stratum)
    quota = _shares(sizes, limit)
    order = np.argsort(stratum, kind="stable")
    rank = np.arange(len(stratum)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[rank < quota[stratum[order]]])


def _shares(sizes: np.ndarray, limit: int) -> np.ndarray:
    """How many to draw of each stratum: in proportion to the root of its size, at least one, never more than there are."""
    import numpy as np

    quota = np.minimum(sizes, 1)
    open_ = sizes > quota
    while open_.any() and quota.sum() < limit:
        roots = np.where(open_, np.sqrt(sizes), 0)
        more = np.floor((limit - quota.sum()) * roots / roots.sum()).astype(int)
        if not more.any():
            break
        quota = np.minimum(sizes, quota + more)
        open_ = sizes > quota
    return quota


def _round_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
