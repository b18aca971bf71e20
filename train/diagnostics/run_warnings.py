"""Warnings that never stop a run: slow ranks, slow data loading, vanishing face masks, dead interaction.

Each rank measures its own steps. Every `health.watch_every` steps the ranks exchange their values and get the
same warnings, as lines for events.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median_low
from typing import Any

import torch
from torch import Tensor, nn

from uniavgen.train.diagnostics.config import HealthConfig
from uniavgen.train.engine.collectives import all_gather_object
from uniavgen.train.engine.deepspeed_engine import gather_parameter
from uniavgen.train.model.family import ModelFamily


@dataclass
class Times:
    """Seconds since the last check: `own` for data and forward pass, `waited` for data, `all` in total."""

    own: float = 0.0
    waited: float = 0.0
    all: float = 0.0
    steps: int = 0


class RankTime:
    """Seconds of a step that a rank takes before it waits for others.

    On a GPU by CUDA events, as the host runs ahead; with ZeRO-3 this includes the gathering of parameters.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu, self._host_s = device.type == "cuda", 0.0
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure the time of the `with` block."""
        began, first = time.monotonic(), self._mark()
        yield
        self._host_s += time.monotonic() - began
        last = self._mark()
        if first and last:
            self._spans.append((first, last))

    def seconds(self) -> float:
        """The sum so far.

        Call it when the GPU has finished the step, so that the host does not wait for it.
        """
        return max(self._host_s, sum(first.elapsed_time(last) for first, last in self._spans) / 1000)

    def _mark(self) -> torch.cuda.Event | None:
        if not self._on_gpu:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class RunWarnings:
    """Measures one rank. All ranks make one and call `check` at the same steps."""

    def __init__(self, engine: Any, config: HealthConfig, family: ModelFamily) -> None:
        self.engine, self.config, self.family, self.times = engine, config, family, Times()
        self._masks: dict[str, Tensor] = {}
        self.output_norms: dict[str, float] = {}
        self._active: set[str] = set()
        for name, module in family.mask_modules(engine.module).items():
            module.register_forward_hook(self._note_mask(name))

    def add(self, own_s: float, waited_s: float, seconds: float) -> None:
        """Add the times of a step."""
        times = self.times
        times.own, times.waited, times.all, times.steps = (
            times.own + own_s,
            times.waited + waited_s,
            times.all + seconds,
            times.steps + 1,
        )

    def check(self) -> list[str]:
        """Warnings that the last call did not give; the times are reset.

        All ranks call this and get the same.
        """
        times, self.times = self.times, Times()
        self.output_norms = self._output_norms()
        per_rank = all_gather_object((times.own / max(1, times.steps), times.waited))
        texts = {
            "slow-rank": slow_rank(self.config, [own for own, _ in per_rank]),
            "stalled-loader": stalled_loader(self.config, max(waited for _, waited in per_rank), times.all),
            "vanishing-mask": vanishing_mask(
                self.config, [float(mask.float().mean()) for mask in self._masks.values()]
            ),
            "dead-interaction": dead_interaction(self.output_norms),
        }
        warnings = [text for kind, text in texts.items() if text and kind not in self._active]
        self._active = {kind for kind, text in texts.items() if text}
        return warnings

    def _note_mask(self, name: str) -> Any:
        def note(module: nn.Module, inputs: Any, mask: Tensor) -> None:
            self._masks[name] = mask.detach()  # its mean is computed in `check` only

        return note

    def _output_norms(self) -> dict[str, float]:
        """Norms of the weights that started at zero, by name."""
        return {
            name: float(torch.linalg.vector_norm(gather_parameter(self.engine, parameter)))
            for name, parameter in self.family.zero_started(self.engine.module).items()
        }


def slow_rank(config: HealthConfig, seconds: Sequence[float]) -> str:
    """Warning if one rank is slow.

    `seconds`: time of each rank for data and forward pass, before it waits for others.
    """
    usual, worst = median_low(seconds), max(seconds)
    if len(seconds) < 2 or worst <= config.slow_rank * usual:
        return ""
    rank = seconds.index(worst)
    own = f"{worst:.2f} s a step before it waits for the others"
    return f"rank {rank} is slow: {own}, the median is {usual:.2f} s"


def stalled_loader(config: HealthConfig, waited_s: float, seconds: float) -> str:
    """Warning if a large share of the time was spent waiting for data."""
    share = waited_s / max(seconds, 1e-9)
    if share <= config.data_wait:
        return ""
    hint = "cache the latents, or give workers more CPUs"
    return f"the loader is too slow: {share:.0%} of the time is spent waiting for data ({hint})"


def vanishing_mask(config: HealthConfig, means: Sequence[float]) -> str:
    """Warning if the face masks of all layers are near zero, so that no modality affects the other.

    `means`: one per layer.
    """
    if not means or max(means) > config.mask_mean:
        return ""
    largest = f"{max(means):.4f} is the largest mean of {len(means)} layers"
    return f"the face masks vanish: {largest}, below {config.mask_mean}"


def dead_interaction(norms: dict[str, float]) -> str:
    """Warning if output projections Wo, which start at zero, are still zero. `norms`: norm of Wo by layer."""
    dead = [name for name, norm in norms.items() if norm == 0]
    if not dead:
        return ""
    listed = ", ".join(dead[:4])
    return f"the interaction is dead: Wo is 0 in {len(dead)} of {len(norms)} directions ({listed})"
