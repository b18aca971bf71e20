"""Figures of a run that only ever warn: slow workers, a stalled loader, vanishing masks, a dead interaction.

In: what each worker measures of its own steps, and the engine. Out: sentences for `events.jsonl`, every so many steps.
Everything costly is gathered at a look, not at a step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uniavgen.train.diagnostics import health
from uniavgen.train.diagnostics.config import HealthConfig
from uniavgen.train.engine.deepspeed_engine import from_all, whole_parameter


@dataclass
class Times:
    """Seconds since the last look: `own` until the forward pass was done, `waited` of it for data, `all` of the steps."""

    own: float = 0.0
    waited: float = 0.0
    all: float = 0.0
    steps: int = 0


class OwnTime:
    """Seconds of a step that a worker takes by itself. A card works on while the host goes ahead: there its own clock counts,
    and under ZeRO-3 what the forward pass gathers from the others."""

    def __init__(self, device: torch.device) -> None:
        self._on_card, self._host_s = device.type == "cuda", 0.0
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done within."""
        began, first = time.monotonic(), self._mark()
        yield
        self._host_s += time.monotonic() - began
        last = self._mark()
        if first and last:
            self._spans.append((first, last))

    def seconds(self) -> float:
        """The sum so far; to be asked for when the card is done with the step, so that it is not waited for."""
        return max(self._host_s, sum(first.elapsed_time(last) for first, last in self._spans) / 1000)

    def _mark(self) -> torch.cuda.Event | None:
        if not self._on_card:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Watch:
    """One worker's part of the watch. All workers make one and look at the same steps."""

    def __init__(self, engine: Any, config: HealthConfig) -> None:
        self.engine, self.config, self.times = engine, config, Times()
        self._masks: dict[str, Tensor] = {}
        self.output_norms: dict[str, float] = {}
        self._told: set[str] = set()
        for name, module in engine.module.named_modules():
            if name.startswith("interactions.") and name.endswith(".face"):
                module.register_forward_hook(self._note_mask(name))

    def add(self, own_s: float, waited_s: float, seconds: float) -> None:
        """Count a step's times."""
        times = self.times
        times.own, times.waited, times.all, times.steps = (
            times.own + own_s,
            times.waited + waited_s,
            times.all + seconds,
            times.steps + 1,
        )

    def look(self) -> list[str]:
        """Warnings that the last look did not give already; the times start anew. All workers call this."""
        times, self.times = self.times, Times()
        self.output_norms = self._output_norms()
        per_rank = from_all((times.own / max(1, times.steps), times.waited))
        found = {
            "slow-rank": health.slow_rank(self.config, [own for own, _ in per_rank]),
            "stalled-loader": health.stalled_loader(
                self.config, max(waited for _, waited in per_rank), times.all
            ),
            "vanishing-mask": health.vanishing_mask(
                self.config, [float(mask.float().mean()) for mask in self._masks.values()]
            ),
            "dead-interaction": health.dead_interaction(self.output_norms),
        }
        warnings = [text for kind, text in found.items() if text and kind not in self._told]
        self._told = {kind for kind, text in found.items() if text}
        return warnings

    def _note_mask(self, name: str) -> Any:
        def note(module: nn.Module, inputs: Any, mask: Tensor) -> None:
            self._masks[name] = mask.detach()  # its mean is taken at a look only

        return note

    def _output_norms(self) -> dict[str, float]:
        """Norm of each trained Wo, by layer and direction."""
        found = {}
        for name, parameter in self.engine.module.named_parameters():
            if name.startswith("interactions.") and name.endswith(".o.weight") and parameter.requires_grad:
                layer, direction = name.split(".")[1:3]
                found[f"{layer}.{direction}"] = float(
                    torch.linalg.vector_norm(whole_parameter(self.engine, parameter))
                )
        return found
