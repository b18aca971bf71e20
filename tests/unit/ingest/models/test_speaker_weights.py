"""Speaker embeddings equal those of SpeechBrain's own network with the published weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from uniavgen.ingest.config import DiarizationConfig
from uniavgen.ingest.models import speaker_embedding
from uniavgen.ingest.models.speaker_embedding import VOICE_SIZE, VoiceEncoder, without_subnormals
from uniavgen.shards.weights import resolve


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


def test_embeddings_are_those_of_the_unchanged_network() -> None:
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    plain = ECAPA_TDNN(80, channels=[1024] * 4 + [3072], lin_neurons=VOICE_SIZE).eval()
    weights = resolve("ecapa") / "embedding_model.ckpt"
    plain.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    encoder, random = VoiceEncoder(DiarizationConfig()), np.random.default_rng(1)
    loudness = np.array([[1.0], [1.0], [0.0]])  # the last one is digital silence
    speech = (random.normal(size=(3, 24_000)) * 0.1 * loudness).astype(np.float32)
    with torch.inference_mode():
        features = encoder._features(torch.from_numpy(speech))
        expected = plain(features - features.mean(dim=1, keepdim=True))[:, 0].numpy()
    found = encoder.encode(list(speech))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)
