"""Shared by the tests of training: a small shards folder, small batches and small models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_samples import make_sample, write_shards

from uniavgen.shards.timing import frames_for_latents, mels_for_frames
from uniavgen.train.batch import LatentBatch
from uniavgen.train.model.config import BranchConfig, InteractionConfig, ModelConfig, SpeechTextConfig
from uniavgen.train.model.dual_branch import DualBranch


@pytest.fixture(scope="session")
def shards_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight usable clips and one that is too short for a window of 5 frames."""
    samples = [make_sample(f"clip{i}", 24 + i, seed=i) for i in range(8)]
    return write_shards(
        tmp_path_factory.mktemp("corpus") / "shards", [*samples, make_sample("short", 4, seed=9)]
    )


@pytest.fixture
def make_batch() -> Callable[..., LatentBatch]:
    """A batch of random latents: `size` clips of `latents` x 4 x 4, with text and reference voice."""

    def make(size: int = 2, latents: int = 5, seed: int = 0, voice: int = 9) -> LatentBatch:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        mels = mels_for_frames(frames_for_latents(latents))
        return LatentBatch(
            keys=[f"clip{i}" for i in range(size)],
            mel=normal(size, 100, mels),
            reference_mel=normal(size, 100, voice),
            speech_ids=torch.randint(1, 257, (size, 6), generator=generator),
            speech_mask=torch.ones(size, 6, dtype=torch.bool),
            video=normal(size, 48, latents, 4, 4),
            reference=normal(size, 48, 1, 4, 4),
            caption=normal(size, 3, 20),
            caption_mask=torch.ones(size, 3, dtype=torch.bool),
            face=torch.rand(size, latents, 2, 2, generator=generator),
        )

    return make


@pytest.fixture
def make_config() -> Callable[..., ModelConfig]:
    """The smallest model that has everything: `layers` layers, widths 32 and 24."""

    def make(layers: int = 2, interaction: dict[str, Any] | None = None, **changes: Any) -> ModelConfig:
        return ModelConfig(
            video=BranchConfig(
                dim=32, layers=layers, heads=2, ffn_dim=48, in_channels=48, patch=(2, 2), text_dim=20
            ),
            audio=BranchConfig(
                dim=24, layers=layers, heads=2, ffn_dim=40, in_channels=100, text_dim=16, rope_axes="time"
            ),
            speech_text=SpeechTextConfig(dim=16, layers=1),
            interaction=InteractionConfig(**(interaction or {})),
            **changes,
        )

    return make


@pytest.fixture
def randomised() -> Callable[..., DualBranch]:
    """A model whose every parameter is random (nothing at zero), except those whose name contains one of
    `keep`."""

    def make(config: ModelConfig, seed: int = 0, keep: tuple[str, ...] = ()) -> DualBranch:
        torch.manual_seed(seed)
        model = DualBranch(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not any(part in name for part in keep):
                    parameter.normal_(std=0.3)
        return model

    return make
