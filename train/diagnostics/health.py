"""Whether a training step may be taken, and what about a run is worth a warning: pure decisions over small states.

In: figures of the global batch, the same on all workers, so that all decide alike. Out: limits for the next step, the reason
why a step was bad, what to do after several, and warnings as sentences with their figure. The paper is silent on all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median, median_low
from typing import TYPE_CHECKING, Any

from uniavgen.shards.errors import UserError
from uniavgen.train.diagnostics.config import HealthConfig

if TYPE_CHECKING:
    from torch import Tensor


class Rewind(Exception):
    """Raised on all workers at once: too many bad steps in a row, go back to the last checkpoint."""


@dataclass
class StepHealth:
    """Losses and gradient norms of the last good steps by task, and the bad steps since; saved with each checkpoint."""

    losses: dict[str, list[float]] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    bad: list[int] = field(default_factory=list)

    def limits(self, config: HealthConfig, task: str) -> tuple[float, float]:
        """Largest loss and largest gradient norm that a step of the task may have; infinity until half a window is known."""
        return (
            _limit(self.losses.get(task, []), config.window, config.loss_spike),
            _limit(self.norms.get(task, []), config.window, config.grad_spike),
        )

    def take(self, config: HealthConfig, task: str, loss: float, norm: float) -> None:
        """Note a good step."""
        self.bad = []
        for window, value in ((self.losses, loss), (self.norms, norm)):
            values = window.setdefault(task, [])
            values.append(value)
            del values[: -config.window]

    def leave(self, step: int) -> int:
        """Note a bad step (0-based): how many there are in a row now."""
        self.bad = [*self.bad, step] if self.bad and self.bad[-1] == step - 1 else [step]
        return len(self.bad)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _limit(values: Sequence[float], window: int, factor: float) -> float:
    return factor * median(values) if len(values) >= max(1, window // 2) else math.inf


def fault_of(loss: float, norm: float, limits: tuple[float, float]) -> str:
    """Why a step of this loss and gradient norm is bad, in words; empty where it is good."""
    for name, value, limit in (("loss", loss, limits[0]), ("gradient norm", norm, limits[1])):
        if not math.isfinite(value):
            return f"{name} is {value}"
        if value > limit:
            return f"{name} {value:.4g} is over {limit:.4g}, which is what the steps before allow"
    return ""


@dataclass
class Rewinds:
    """The times that a stage went back to a checkpoint, and the steps (0-based) that it leaves out since; in stage.json."""

    times: int = 0
    avoid: list[int] = field(default_factory=list)

    def after(self, bad: Sequence[int]) -> Rewinds:
        """One more: the steps that were bad are not tried again, since the same draw would give the same batch."""
        return Rewinds(self.times + 1, sorted({*self.avoid, *bad}))

    def refuse_more(self, config: HealthConfig, bad: Sequence[int], fault: str, where: object) -> None:
        """Raise UserError with the verdict where the stage has gone back often enough."""
        if self.times < config.max_rewinds:
            return
        often = f"{self.times} time{'s' * (self.times != 1)}"
        again = f"again after going back {often}" if self.times else "and the stage may not go back"
        raise UserError(
            f"training diverged: {len(bad)} bad steps in a row up to step {bad[-1] + 1}, {again}; the last: {fault}",
            where=where,
            hint="look at the samples named there, lower the learning rate, or start from an earlier checkpoint",
            kind="diverged",
        )


def slow_rank(config: HealthConfig, seconds: Sequence[float]) -> str:
    """A warning where one worker's own time (data and forward pass, before it waits for the others) stands out."""
    usual, worst = median_low(seconds), max(seconds)
    if len(seconds) < 2 or worst <= config.slow_rank * usual:
        return ""
    return f"worker {seconds.index(worst)} is slow: {worst:.2f} s a step before it meets the others, the median is {usual:.2f} s"


def stalled_loader(config: HealthConfig, waited_s: float, seconds: float) -> str:
    """A warning where much of the time went into waiting for data."""
    share = waited_s / max(seconds, 1e-9)
    if share <= config.data_wait:
        return ""
    return f"the loader stalls: {share:.0%} of the time is spent waiting for data (cache the latents, or more CPUs per worker)"


def vanishing_mask(config: HealthConfig, means: Sequence[float]) -> str:
    """A warning where the face masks tend to zero, so that neither modality hears of the other. `means`: one a layer."""
    if not means or max(means) > config.mask_mean:
        return ""
    return f"the face masks vanish: mean {max(means):.4f} in the most open of {len(means)} layers, under {config.mask_mean}"


def dead_interaction(norms: dict[str, float]) -> str:
    """A warning where output projections Wo, which start at zero, still stand there. `norms`: by the layer's name."""
    dead = [name for name, norm in norms.items() if norm == 0]
    if not dead:
        return ""
    return f"the interaction is dead: the norm of Wo is 0 in {len(dead)} of {len(norms)} directions ({', '.join(dead[:4])})"


def statistics_of(tensors: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Smallest, largest, mean and deviation of the finite values of each tensor, and how many values are not finite."""
    found = {}
    for name, tensor in tensors.items():
        values = tensor.detach().float().flatten()
        finite = values[values.isfinite()]
        figures = {"not_finite": float(values.numel() - finite.numel())}
        if finite.numel():
            figures |= {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean())}
            figures["std"] = float(finite.std(correction=0))
        found[name] = figures
    return found
