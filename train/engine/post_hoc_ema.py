"""Post-hoc EMA (Karras et al., arXiv 2312.02696, section 3): power-function averages, and an average of any
width from stored ones after training.

Imports no torch. An average is theta_t = beta_t theta_{t-1} + (1 - beta_t) w_t with beta_t = (1 - 1/t)^(gamma
+ 1), so that the first update takes the weights as they are; its relative width sigma_rel is fixed by gamma.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uniavgen.shards.errors import UserError

MMAUDIO_SIGMAS = (0.05, 0.1)
"""Widths that MMAudio tracks; it samples with the first."""


def gamma_of(sigma_rel: float) -> float:
    """The exponent whose average has the relative width `sigma_rel`: 0.05 -> 16.972, 0.1 -> 6.937.

    Solves sigma^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)). Raises UserError outside 0..1/sqrt(12).
    """
    if not 0 < sigma_rel < 12**-0.5:
        raise UserError(f"sigma_rel must be in 0..{12**-0.5:.3f}, got {sigma_rel}", kind="bad-setting")
    roots = np.roots([1.0, 7.0, 16.0 - sigma_rel**-2, 12.0 - sigma_rel**-2])
    return float(roots[np.abs(roots.imag) < 1e-9].real.max())


def beta_at(update: int, gamma: float) -> float:
    """Decay of the 1-based update `update`."""
    return float((1 - 1 / update) ** (gamma + 1))


def synthesis_weights(stored: Sequence[tuple[int, float]], at: int, sigma_rel: float) -> list[float]:
    """Factors of stored averages whose sum is nearest to the average of width `sigma_rel` at update `at`.

    stored: (update, gamma) of each average. Least squares over the averages' profiles. Raises UserError
    without an average, or with one that is later than `at`.
    """
    if not stored or any(not 0 < update <= at for update, _ in stored):
        raise UserError(f"post-hoc EMA at update {at} needs averages of updates 1..{at}", kind="bad-setting")
    updates, gammas = (np.array(column, dtype=float) for column in zip(*stored, strict=True))
    target = gamma_of(sigma_rel)
    matrix = _overlap(updates[:, None], gammas[:, None], updates[None], gammas[None])
    goal = _overlap(updates, gammas, np.array([at]), np.array([target]))
    factors, *_ = np.linalg.lstsq(matrix, goal, rcond=None)
    return [float(factor) for factor in factors]


def _overlap(t_a: np.ndarray, gamma_a: np.ndarray, t_b: np.ndarray, gamma_b: np.ndarray) -> np.ndarray:
    """Inner product of two profiles p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on 0..t."""
    first = np.minimum(t_a, t_b)
    powers = np.log(first / t_a) * gamma_a + np.log(first / t_b) * gamma_b
    scale = (gamma_a + 1) * (gamma_b + 1) * first / (t_a * t_b * (gamma_a + gamma_b + 1))
    return np.asarray(scale * np.exp(powers))
