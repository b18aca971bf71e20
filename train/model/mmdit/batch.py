"""Data of a step of the video-to-audio transformer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train.batch import on_device
from uniavgen.train.model.mmdit.config import SYNC, MMDiTConfig


@dataclass(frozen=True)
class Conditions:
    """The inputs beside audio, any of which a sample may lack.

    inputs: name -> features [B, L, channels], or symbol ids int64 [B, L]; a name that no sample has may be
    left out. present: name -> whether each sample has it, on the host, so that no step waits for a GPU; a
    name that is left out is present where `inputs` has it. What `inputs` holds for a sample without the input
    is never read. masks: name -> bool [B, L], True where there is no padding; left out: no padding.
    """

    inputs: Mapping[str, Tensor]
    present: Mapping[str, tuple[bool, ...]]
    masks: Mapping[str, Tensor]

    def has(self, name: str, samples: int) -> tuple[bool, ...]:
        """Whether each sample has the input."""
        return self.present.get(name, (name in self.inputs,) * samples)

    def without(self, drops: Mapping[str, Collection[bool]]) -> Conditions:
        """The same conditions, with each input absent where `drops` says so (name -> one bool a sample)."""
        present = dict(self.present)
        for name, dropped in drops.items():
            kept = self.has(name, len(dropped))
            present[name] = tuple(here and not drop for here, drop in zip(kept, dropped, strict=True))
        return replace(self, present=present)

    def to(self, device: torch.device | str) -> Conditions:
        """The same conditions with every tensor on `device`."""
        return replace(
            self,
            inputs={name: on_device(value, device) for name, value in self.inputs.items()},
            masks={name: on_device(value, device) for name, value in self.masks.items()},
        )


@dataclass(frozen=True)
class SoundBatch:
    """Audio latents [B, C, N] as the VAE gives them, not normalised, and their conditions."""

    keys: list[str]
    latent: Tensor
    conditions: Conditions

    def to(self, device: torch.device | str) -> SoundBatch:
        """The same batch with every tensor on `device`."""
        return replace(self, latent=on_device(self.latent, device), conditions=self.conditions.to(device))


def validate_sound_batch(batch: SoundBatch, config: MMDiTConfig) -> None:
    """Raise UserError naming the first member that does not fit the model or holds NaN or infinity.

    Call it where batches are made: reading values on a GPU would wait for the GPU.
    """
    size = len(batch.keys)
    if (
        batch.latent.dim() != 3
        or batch.latent.shape[:2] != (size, config.channels)
        or not batch.latent.numel()
    ):
        raise UserError(
            f"latent has shape {list(batch.latent.shape)}, expected [{size}, {config.channels}, N]",
            kind="bad-shape",
        )
    _require_finite("latent", batch.latent, batch.keys)
    conditions = batch.conditions
    widths = {stream.name: None if stream.ids else stream.channels for stream in config.streams}
    if config.frame:
        widths[SYNC] = config.frame.channels
    for name in {*conditions.inputs, *conditions.present, *conditions.masks}:
        if name not in widths:
            raise UserError(
                f"the model has no input {name}", hint=f"inputs: {', '.join(widths)}", kind="unknown-input"
            )
    for name, width in widths.items():
        has = conditions.has(name, size)
        if len(has) != size or (any(has) and name not in conditions.inputs):
            raise UserError(f"input {name} is present in samples that have no features", kind="bad-shape")
        if name in conditions.inputs:
            _check_input(name, conditions, width, batch.keys)
    if config.frame and SYNC in conditions.inputs and conditions.inputs[SYNC].shape[1] % config.frame.segment:
        raise UserError(
            f"sync has {conditions.inputs[SYNC].shape[1]} features, no multiple of {config.frame.segment}",
            kind="bad-shape",
        )


def _check_input(name: str, conditions: Conditions, width: int | None, keys: list[str]) -> None:
    value, size = conditions.inputs[name], len(keys)
    expected = [size, "L"] if width is None else [size, "L", width]
    if value.dim() != len(expected) or len(value) != size or (width and value.shape[2] != width):
        raise UserError(f"{name} has shape {list(value.shape)}, expected {expected}", kind="bad-shape")
    if not value.shape[1]:
        raise UserError(f"{name} has no tokens", kind="bad-shape")
    if name in conditions.masks and conditions.masks[name].shape != value.shape[:2]:
        raise UserError(
            f"the mask of {name} has shape {list(conditions.masks[name].shape)}, expected "
            f"{list(value.shape[:2])}",
            kind="bad-shape",
        )
    if width is not None:
        here = torch.tensor(conditions.has(name, size))
        _require_finite(name, value[here], [key for key, has in zip(keys, here.tolist(), strict=True) if has])


def _require_finite(name: str, value: Tensor, keys: list[str]) -> None:
    if not bool(torch.isfinite(value).all()):
        bad = [key for key, row in zip(keys, value, strict=True) if not bool(torch.isfinite(row).all())]
        raise UserError(f"{name} holds NaN or infinity", where=", ".join(bad), kind="not-finite")
