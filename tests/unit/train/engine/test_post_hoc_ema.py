"""Power-function averages against their sums, written naively."""

import numpy as np
import pytest

from uniavgen.shards.errors import UserError
from uniavgen.train.engine.post_hoc_ema import beta_at, gamma_of, synthesis_weights


def averaged(weights: np.ndarray, gamma: float) -> np.ndarray:
    """All averages of a trajectory of weights."""
    out, average = [], 0.0
    for update, value in enumerate(weights, start=1):
        beta = beta_at(update, gamma)
        average = beta * average + (1 - beta) * value
        out.append(average)
    return np.array(out)


@pytest.mark.parametrize(("sigma", "gamma"), [(0.05, 16.972), (0.1, 6.937)])
def test_gamma_gives_the_relative_width(sigma: float, gamma: float) -> None:
    assert gamma_of(sigma) == pytest.approx(gamma, abs=1e-3)
    s = (np.arange(200_000) + 0.5) / 200_000
    profile = (gamma_of(sigma) + 1) * s ** gamma_of(sigma)
    mean = (profile * s).mean()
    assert np.sqrt((profile * (s - mean) ** 2).mean()) == pytest.approx(sigma, rel=1e-4)


def test_first_update_takes_the_weights() -> None:
    assert averaged(np.array([3.0]), 16.972)[0] == 3.0


@pytest.mark.parametrize("sigma", [0.05, 0.07, 0.1])
def test_synthesis_approximates_the_average_of_another_width(sigma: float) -> None:
    rng = np.random.default_rng(0)
    weights = np.cumsum(rng.normal(size=4000)) / 60 + np.linspace(0, 1, 4000)
    gammas = [gamma_of(0.05), gamma_of(0.1)]
    tracks = [averaged(weights, gamma) for gamma in gammas]
    stored = [(update, k) for update in range(500, 4001, 500) for k in (0, 1)]
    factors = synthesis_weights([(update, gammas[k]) for update, k in stored], 4000, sigma)
    ours = sum(f * tracks[k][update - 1] for f, (update, k) in zip(factors, stored, strict=True))
    assert sum(factors) == pytest.approx(1, abs=0.01)
    assert ours == pytest.approx(averaged(weights, gamma_of(sigma))[-1], abs=0.02)


def test_stored_average_itself_is_found() -> None:
    stored = [(100, gamma_of(0.1)), (200, gamma_of(0.05)), (200, gamma_of(0.1))]
    assert synthesis_weights(stored, 200, 0.1) == pytest.approx([0, 0, 1], abs=1e-6)


@pytest.mark.parametrize(("stored", "sigma"), [([], 0.1), ([(300, 6.9)], 0.1), ([(100, 6.9)], 0.4)])
def test_impossible_requests_are_one_line(stored: list[tuple[int, float]], sigma: float) -> None:
    with pytest.raises(UserError):
        synthesis_weights(stored, 200, sigma)
