"""A moving average of the weights in training (EMA): kept in fp32 beside each worker's own shard of them.

In: a DeepSpeed engine and a decay. Out: whole averaged weights, which no longer know how they were spread over workers.
The decay warms up as min(decay, (1 + n) / (10 + n)) over n updates (TensorFlow's and diffusers' rule), so that a short
run's average is not its random start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from uniavgen.train.engine.deepspeed_engine import full_weights, masters, set_master

PIECE = 2**24
"""Numbers of a shard that change places at once."""


class WeightAverage:
    """The average of one worker's shards. All workers make one and call the same methods in the same order."""

    def __init__(self, engine: Any, decay: float) -> None:
        self.engine, self.decay, self.updates = engine, decay, 0
        self._average = [master.detach().clone() for master in masters(engine)]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step: average += (1 - decay) (weights - average)."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._average, [master.detach() for master in masters(self.engine)], 1 - decay)
        self.updates += 1

    def whole(self) -> dict[str, Tensor]:
        """Every weight of the model, averaged where it is trained, on the CPU of the first worker ({} elsewhere)."""
        with self._in_place():
            return full_weights(self.engine)

    def restore(self, tensor_named: Callable[[str], Tensor], updates: int) -> None:
        """Take the average from whole weights, however they were spread when they were saved."""
        self.updates = updates
        with self._in_place():
            for name, parameter in self.engine.module.named_parameters():
                if parameter.requires_grad:
                    set_master(parameter, tensor_named(name))

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """While it lasts, the average stands where DeepSpeed looks for the weights, and what is set there is kept."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for master, average in zip(masters(self.engine), self._average, strict=True):
            # in pieces: under ZeRO a master is all that a worker holds, and there is no room for a third one
            for mine, other in zip(
                master.data.view(-1).split(PIECE), average.view(-1).split(PIECE), strict=True
            ):
                held = mine.clone()
                mine.copy_(other)
                other.copy_(held)
