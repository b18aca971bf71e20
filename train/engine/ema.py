"""Exponential moving average (EMA) of the weights in training: fp32, sharded as the weights are.

The decay warms up as min(decay, (1 + n) / (10 + n)) over n updates (the rule of TensorFlow and diffusers), so
that the average of a short run is not its random start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from uniavgen.train.engine.deepspeed_compat import master_weights, publish_master_weights, set_master_weight
from uniavgen.train.engine.deepspeed_engine import gather_weights

CHUNK_NUMBERS = 2**24
"""Numbers of a shard that are swapped at once."""


class Ema:
    """The average of one rank's shards. All ranks create one and call the same methods in the same order."""

    def __init__(self, engine: Any, decay: float) -> None:
        self.engine, self.decay, self.updates = engine, decay, 0
        self._average = [weights.detach().clone() for weights in master_weights(engine)]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after a step: average += (1 - decay) (weights - average)."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [shard.detach() for shard in master_weights(self.engine)]
        torch._foreach_lerp_(self._average, weights, 1 - decay)
        self.updates += 1

    def gather(self) -> dict[str, Tensor]:
        """All weights of the model, averaged where trained, on the CPU of rank 0 ({} on other ranks)."""
        with self._swapped_in():
            return gather_weights(self.engine)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with the average within the block, and with its own weights after it.

        All ranks call this.
        """
        self._swap()
        try:
            publish_master_weights(self.engine)
            yield
        finally:
            self._swap()
            publish_master_weights(self.engine)

    def restore(self, tensor_named: Callable[[str], Tensor], updates: int) -> None:
        """Load complete averaged weights, whatever sharding they were saved from."""
        self.updates = updates
        with self._swapped_in():
            for name, parameter in self.engine.module.named_parameters():
                if parameter.requires_grad:
                    set_master_weight(parameter, tensor_named(name))

    @contextmanager
    def _swapped_in(self) -> Iterator[None]:
        """Exchange weights and average within the block. What the block writes goes to the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weights, average in zip(master_weights(self.engine), self._average, strict=True):
            # in chunks: under ZeRO there may be no memory for a third copy of a shard
            chunks = zip(
                weights.data.view(-1).split(CHUNK_NUMBERS), average.view(-1).split(CHUNK_NUMBERS), strict=True
            )
            for ours, averaged in chunks:
                held = ours.clone()
                ours.copy_(averaged)
                averaged.copy_(held)
