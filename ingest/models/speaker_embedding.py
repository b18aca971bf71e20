"""Speaker embeddings by ECAPA-TDNN (192-d), and their clustering to speakers.

Clustering is agglomerative with average linkage on cosine distance. A long source is clustered chunk by
chunk, and its clusters are then merged with the same linkage, so that memory depends on the chunk and not on
the source.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from uniavgen.ingest.config import DiarizationConfig
from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.shards.weights import resolve

VOICE_SIZE = 192
MIN_SPEECH_S = 0.5
"""Shortest speech that gives an embedding (pyannote's limit for SpeechBrain models)."""


class VoiceEncoder:
    """ECAPA-TDNN, loaded once."""

    size = VOICE_SIZE

    def __init__(self, config: DiarizationConfig, device: str = "cpu") -> None:
        import torch
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

        remove_lazy_modules()

        self.device = torch.device(device)
        self._longest = round(config.voice_seconds * AUDIO_RATE)
        self._batch = config.batch_size
        self._features = Fbank(n_mels=80).to(self.device)
        self._model = ECAPA_TDNN(80, channels=[1024] * 4 + [3072], lin_neurons=VOICE_SIZE)
        weights = resolve("ecapa", config.ecapa_folder or None) / "embedding_model.ckpt"
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        self._model.load_state_dict({name: without_subnormals(value) for name, value in stored.items()})
        self._model.eval().to(self.device)
        _drop_needless_work(self._model)

    def encode(self, waveforms: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings float32 [B, 192] of B waveforms float32 [n_i] of speech; n_i may differ.

        NaN for less than half a second; of more than `voice_seconds` the middle is used. Equal lengths share
        batches.
        """
        import torch

        voices = np.full((len(waveforms), VOICE_SIZE), np.nan, np.float32)
        by_length: dict[int, list[int]] = {}
        for row, speech in enumerate(waveforms):
            if len(speech) >= MIN_SPEECH_S * AUDIO_RATE:
                by_length.setdefault(min(len(speech), self._longest), []).append(row)
        for length, rows in by_length.items():
            for first in range(0, len(rows), self._batch):
                batch = rows[first : first + self._batch]
                cut = [waveforms[row][(len(waveforms[row]) - length) // 2 :][:length] for row in batch]
                with torch.inference_mode():
                    features = self._features(torch.from_numpy(np.stack(cut)).to(self.device))
                    # sentence-mean normalisation, as the weights were trained
                    embedded = self._model(features - features.mean(dim=1, keepdim=True))
                voices[batch] = embedded[:, 0].cpu().numpy()
        return voices


def _drop_needless_work(model: Any) -> None:
    """Make SpeechBrain's ECAPA-TDNN cheaper, with results that are equal to rounding."""
    from speechbrain.nnet.CNN import Conv1d

    for layer in model.modules():
        if isinstance(layer, Conv1d) and layer.kernel_size == 1:
            layer.padding = "valid"  # else it copies its input to pad it with nothing
    pooling = model.asp
    pooling.forward = lambda x, lengths=None: pool_voice(pooling, x)


def pool_voice(pooling: Any, x: Any) -> Any:
    """What SpeechBrain's attentive pooling gives for `x` [B, C, T] without padding: [B, 2C, 1].

    The attention of every frame reads mean and deviation of all frames (Desplanques et al. 2020, section
    3.2). These are the same for all T frames, so they are multiplied by their weights once and not T times.
    """
    import torch
    from torch.nn import functional as F

    layer, channels = pooling.tdnn, x.shape[1]
    weight = layer.conv.conv.weight  # [A, 3C, 1]
    deviation, mean = torch.std_mean(x, dim=2, correction=0)
    context = torch.cat([mean, deviation.clamp(pooling.eps**0.5)], dim=1)
    shared = F.linear(context, weight[:, channels:, 0], layer.conv.conv.bias)
    attention = F.conv1d(x, weight[:, :channels]).add_(shared[:, :, None])
    attention = pooling.conv(pooling.tanh(layer.norm(layer.activation(attention)))).softmax(dim=2)
    mean = (attention * x).sum(dim=2)
    variance = (x - mean[:, :, None]).square_().mul_(attention).sum(dim=2)
    return torch.cat([mean, variance.clamp(pooling.eps).sqrt()], dim=1)[:, :, None]


def without_subnormals(weights: Any) -> Any:
    """The tensor with subnormal numbers set to 0: they are too small to change a sum, and a CPU takes many
    times longer to multiply them. In some of ECAPA's layers up to 4 % of the weights are subnormal.
    """
    import torch

    if not weights.is_floating_point():
        return weights
    return torch.where(weights.abs() < torch.finfo(weights.dtype).tiny, torch.zeros_like(weights), weights)


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Rows of [..., d] scaled to unit length."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def cluster_voices(voices: np.ndarray, threshold: float) -> np.ndarray:
    """Cluster labels int [n] of voices [n, d]: average linkage on cosine distance, cut at `threshold`."""
    from scipy.cluster.hierarchy import fcluster, linkage

    if len(voices) < 2:
        return np.zeros(len(voices), int)
    labels = fcluster(linkage(voices, method="average", metric="cosine"), threshold, criterion="distance")
    return np.asarray(labels, int) - 1


def merge_clusters(means: np.ndarray, sizes: np.ndarray, threshold: float) -> np.ndarray:
    """Labels int [k] of k clusters: the same average linkage, continued from clusters that were formed
    separately.

    `means` [k, d] are means of unit vectors. One minus the dot product of two of them is the mean cosine
    distance between their members, so average linkage needs only means and sizes.
    """
    means, sizes = means.astype(np.float64).copy(), sizes.astype(np.float64).copy()
    labels, alive = np.arange(len(means)), np.ones(len(means), bool)
    distance = 1.0 - means @ means.T
    np.fill_diagonal(distance, np.inf)
    while alive.sum() > 1:
        a, b = sorted(int(i) for i in np.unravel_index(distance.argmin(), distance.shape))
        if distance[a, b] > threshold:
            break
        means[a] = (sizes[a] * means[a] + sizes[b] * means[b]) / (sizes[a] + sizes[b])
        sizes[a] += sizes[b]
        labels[labels == b], alive[b] = a, False
        distance[a] = np.where(alive, 1.0 - means @ means[a], np.inf)
        distance[:, a], distance[a, a] = distance[a], np.inf
        distance[b], distance[:, b] = np.inf, np.inf
    return np.unique(labels, return_inverse=True)[1]


def absorb_small_clusters(means: np.ndarray, sizes: np.ndarray, min_size: int) -> np.ndarray:
    """Labels int [k] of k clusters: one with fewer than `min_size` members takes the label of the nearest
    large one.

    All get one label where none is large enough (as in pyannote).
    """
    large = np.flatnonzero(sizes >= min_size)
    if not len(large):
        return np.zeros(len(sizes), int)
    nearest = (unit_length(means) @ unit_length(means[large]).T).argmax(axis=1)
    nearest[large] = np.arange(len(large))
    return np.asarray(nearest, int)


def remove_lazy_modules() -> None:
    """Remove SpeechBrain's placeholders from sys.modules: they raise when inspected, as tracebacks and pytest
    do.
    """
    for name, module in list[tuple[str, Any]](sys.modules.items()):
        if any(kind.__name__ == "LazyModule" for kind in type(module).__mro__):
            del sys.modules[name]
