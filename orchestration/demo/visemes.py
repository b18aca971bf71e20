"""Mouth opening and rounding over time, from phones with their times (IPA of Piper, ARPABET of pocketsphinx).

The lips follow the phones, not the loudness: so a measurement of lip sync has real motion to compare.
The values are heuristic, in the order of phonetics: open vowels widest, lips closed for p, b, m.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

WIDEST = 0.085
"""Distance between the lips at opening 1, as a share of the face height. Heuristic: clear speech, not
shouting."""

_SHAPES: tuple[tuple[str, float, float], ...] = (
    # IPA and ARPABET phones, opening, rounding (negative: spread)
    ("a ɑ æ ɐ AA AE AW AY AH", 1.00, 0.0),
    ("ʌ ɔ AO OY", 0.85, 0.45),
    ("ɛ e EH EY", 0.70, -0.4),
    ("o ɒ OW", 0.65, 0.8),
    ("ə ɜ ɚ ɝ ᵻ ER", 0.55, 0.1),
    ("ɪ IH", 0.50, -0.3),
    ("i IY", 0.42, -0.6),
    ("ʊ UH", 0.45, 0.7),
    ("u UW", 0.35, 1.0),
    ("h HH", 0.45, 0.0),
    ("k ɡ g ŋ K G NG", 0.30, 0.0),
    ("l ɫ L", 0.35, 0.0),
    ("ɹ r ɾ R", 0.25, 0.5),
    ("j Y", 0.28, -0.4),
    ("w W", 0.15, 1.0),
    ("t d n T D N", 0.20, 0.0),
    ("θ ð TH DH", 0.20, 0.0),
    ("s z S Z", 0.13, -0.3),
    ("ʃ ʒ SH ZH CH JH", 0.18, 0.6),
    ("f v F V", 0.06, 0.0),
    ("p b m P B M", 0.00, 0.0),
)
SHAPES: dict[str, tuple[float, float]] = {p: (o, r) for phones, o, r in _SHAPES for p in phones.split()}
"""Phone -> (opening 0..1, rounding -1..1). Other symbols (pauses, stress marks) mean a mouth at rest."""

REST = 0.03
"""Opening of a silent mouth."""


@dataclass(frozen=True)
class Phone:
    """A spoken phone; times in seconds."""

    symbol: str
    start_s: float
    end_s: float

    def shifted(self, by_s: float) -> Phone:
        return Phone(self.symbol, self.start_s + by_s, self.end_s + by_s)


def mouth_track(
    phones: Sequence[Phone], times: np.ndarray, *, smooth_s: float = 0.018
) -> tuple[np.ndarray, np.ndarray]:
    """Opening float64 [n] (0..1) and rounding float64 [n] (-1..1) at the instants `times` [n] in seconds.

    Each phone holds its shape over its middle 40 %; the mouth moves linearly between. A Gaussian of
    `smooth_s` (one sigma) smooths the motion, because lips have mass.
    """
    import numpy as np
    from scipy.ndimage import gaussian_filter1d

    knots, shapes = [-1.0], [(REST, 0.0)]
    previous_end = -1.0
    for phone in phones:
        # in a pause the mouth comes to rest, and opens again a little early
        if phone.start_s - previous_end > 0.25:
            for knot in (previous_end + 0.10, phone.start_s - 0.08):
                knots.append(max(knot, knots[-1] + 1e-3))
                shapes.append((REST, 0.0))
        length = phone.end_s - phone.start_s
        for knot in (phone.start_s + 0.3 * length, phone.start_s + 0.7 * length):
            knots.append(max(knot, knots[-1] + 1e-3))
            shapes.append(SHAPES.get(phone.symbol, (REST, 0.0)))
        previous_end = phone.end_s
    knots += [knots[-1] + 0.10, knots[-1] + 1e6]
    shapes += [(REST, 0.0)] * 2
    rate = 400.0  # Hz of the fine grid on which the corners are rounded
    grid = np.arange(-0.2, max(float(times[-1]), 0.0) + 0.2, 1 / rate) if len(times) else np.zeros(1)
    columns = [
        gaussian_filter1d(np.interp(grid, knots, column), smooth_s * rate)
        for column in zip(*shapes, strict=True)
    ]
    return np.interp(times, grid, columns[0]), np.interp(times, grid, columns[1])
