"""ECAPA's weights without subnormal numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uniavgen.ingest.config import DiarizationConfig
from uniavgen.ingest.models import speaker_embedding
from uniavgen.ingest.models.speaker_embedding import VoiceEncoder, without_subnormals


def test_subnormal_numbers_alone_become_zero() -> None:
    tiny = torch.finfo(torch.float32).tiny
    weights = torch.tensor([0.0, tiny, -tiny, tiny / 2, -tiny / 2, 1e-45, 1.5, float("inf")])
    assert without_subnormals(weights).tolist() == [0.0, tiny, -tiny, 0.0, 0.0, 0.0, 1.5, float("inf")]
    counts = torch.tensor([1, 2])
    assert without_subnormals(counts) is counts


def test_voice_embeddings_are_the_same_with_subnormal_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    speech = [(random.normal(size=size) * 0.1).astype(np.float32) for size in (16_000, 32_000)]
    found = VoiceEncoder(DiarizationConfig()).encode(speech)
    replaced = []

    def unchanged(weights: torch.Tensor) -> torch.Tensor:
        replaced.append(bool((without_subnormals(weights) != weights).any()))
        return weights

    monkeypatch.setattr(speaker_embedding, "without_subnormals", unchanged)
    assert np.array_equal(found, VoiceEncoder(DiarizationConfig()).encode(speech))
    assert any(replaced)  # the published weights have some
