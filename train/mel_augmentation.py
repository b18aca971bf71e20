"""Change the mels that a model is given, so that lips follow speech and not one recording's level and timbre.

Ours, not the paper's. Only in tasks that generate no audio: a changed target would teach changed audio.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from uniavgen.train.batch import LatentBatch, on_device
from uniavgen.train.flow_matching import Draw, noise_for, uniform_for
from uniavgen.train.own_options import MelAugmentationConfig
from uniavgen.train.tasks import Task


def augment_mel(batch: LatentBatch, task: Task, draw: Draw, config: MelAugmentationConfig) -> LatentBatch:
    """The batch with changed mels: each sample's change is decided by (seed, step, sample index)."""
    if "audio" in task.spec.generates or not (config.gain or config.shift or config.noise):
        return batch
    changed = [
        change_mel(mel, draw.seed, draw.step, index, config)
        for mel, index in zip(batch.mel, draw.sample_indices, strict=True)
    ]
    return replace(batch, mel=torch.stack(changed))


def change_mel(mel: Tensor, seed: int, step: int, index: int, config: MelAugmentationConfig) -> Tensor:
    """mel [100, L] moved by whole bands, with an offset, and with noise; its time is not changed."""
    bands = round((2 * uniform_for(seed, step, index, "mel-shift") - 1) * config.shift)
    changed = shift_bands(mel, bands)
    if config.gain:
        changed = changed + config.gain * float(noise_for(seed, step, index, (1,), "mel-gain"))
    if config.noise:
        noise = noise_for(seed, step, index, mel.shape, "mel-noise")
        changed = changed + config.noise * on_device(noise, mel.device).to(mel.dtype)
    return changed


def shift_bands(mel: Tensor, bands: int) -> Tensor:
    """mel [M, L] with band i moved to i + bands; the bands that become free repeat the nearest one."""
    source = (torch.arange(mel.shape[0], device=mel.device) - bands).clamp(0, mel.shape[0] - 1)
    return mel.index_select(0, source)
