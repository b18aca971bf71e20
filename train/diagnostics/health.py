"""Decide whether a training step is taken, skipped, or followed by a rewind to the last checkpoint.

All functions are pure, and all ranks call them with the same values of the global batch, so that they decide
alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from uniavgen.shards.errors import UserError
from uniavgen.train.diagnostics.config import HealthConfig

if TYPE_CHECKING:
    from torch import Tensor


class Rewind(Exception):
    """Raised on all ranks at once after too many bad steps in a row: go back to the last checkpoint."""


@dataclass
class StepHealth:
    """Losses and gradient norms of the last good steps by task, and the bad steps since.

    Saved in checkpoints.
    """

    losses: dict[str, list[float]] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    bad: list[int] = field(default_factory=list)

    def limits(self, config: HealthConfig, task: str) -> tuple[float, float]:
        """Largest loss and gradient norm of a step of the task; infinity until half a window is full."""
        return (
            _limit(self.losses.get(task, []), config.window, config.loss_spike),
            _limit(self.norms.get(task, []), config.window, config.grad_spike),
        )

    def take(self, config: HealthConfig, task: str, loss: float, norm: float) -> None:
        """Add a good step."""
        self.bad = []
        for window, value in ((self.losses, loss), (self.norms, norm)):
            values = window.setdefault(task, [])
            values.append(value)
            del values[: -config.window]

    def leave(self, step: int) -> int:
        """Add a bad step (0-based). Returns the number of bad steps in a row."""
        self.bad = [*self.bad, step] if self.bad and self.bad[-1] == step - 1 else [step]
        return len(self.bad)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def _limit(values: Sequence[float], window: int, factor: float) -> float:
    return factor * median(values) if len(values) >= max(1, window // 2) else math.inf


def fault_of(loss: float, norm: float, limits: tuple[float, float]) -> str:
    """The reason why a step of this loss and gradient norm is bad, "" for a good step."""
    for name, value, limit in (("loss", loss, limits[0]), ("gradient norm", norm, limits[1])):
        if not math.isfinite(value):
            return f"{name} is {value}"
        if value > limit:
            return f"{name} {value:.4g} is over the limit of {limit:.4g}, set by the last good steps"
    return ""


@dataclass
class Rewinds:
    """How often a stage went back to a checkpoint, and the steps (0-based) that it skips since.

    Saved in stage.json.
    """

    times: int = 0
    avoid: list[int] = field(default_factory=list)

    def after(self, bad: Sequence[int]) -> Rewinds:
        """After one more rewind: the bad steps are skipped, as the same draw would give the same batch."""
        return Rewinds(self.times + 1, sorted({*self.avoid, *bad}))

    def refuse_more(self, config: HealthConfig, bad: Sequence[int], fault: str, where: object) -> None:
        """Raise UserError of kind `diverged` if the stage has gone back `max_rewinds` times."""
        if self.times < config.max_rewinds:
            return
        often = f"{self.times} time{'s' * (self.times != 1)}"
        again = f"again after going back {often}" if self.times else "and the stage may not go back"
        raise UserError(
            f"training diverged: {len(bad)} bad steps in a row up to step {bad[-1] + 1}, {again}; "
            f"the last: {fault}",
            where=where,
            hint="look at the samples named there, lower the learning rate, or start from an earlier "
            "checkpoint",
            kind="diverged",
        )


def statistics_of(tensors: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Minimum, maximum, mean, deviation of the finite values of each tensor, and count of the others."""
    statistics = {}
    for name, tensor in tensors.items():
        values = tensor.detach().float().flatten()
        finite = values[values.isfinite()]
        entry = {"not_finite": float(values.numel() - finite.numel())}
        if finite.numel():
            entry |= {"min": float(finite.min()), "max": float(finite.max()), "mean": float(finite.mean())}
            entry["std"] = float(finite.std(correction=0))
        statistics[name] = entry
    return statistics
