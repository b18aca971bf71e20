"""Metrics of sets of clips: Frechet distance, KL divergence, inception score; and log-mel statistics.

Definitions as in av-benchmark (the evaluation code of MMAudio). None of them loads a network.
"""

from __future__ import annotations

import numpy as np

IS_SEED, IS_SPLITS = 2020, 10
"""Permutation seed and splits of the inception score, as published."""

MEL_BANDS = 64
FFT, WINDOW, HOP = 512, 400, 160
"""VGGish's frames: 25 ms every 10 ms at 16 kHz."""
LOW_HZ, HIGH_HZ = 125.0, 7500.0


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Frechet distance of Gaussians fitted to embeddings [n, d] and [m, d]; n and m at least 2.

    |mu1 - mu2|^2 + tr(S1) + tr(S2) - 2 tr(sqrtm(S1 S2)), covariances with n - 1, no root. With S1 = A'A and
    S2 = B'B, A and B being the centred rows, the trace of the root is the sum of the singular values of AB'.
    It equals scipy's sqrtm and stays exact with fewer clips than dimensions.
    """
    means = first.mean(axis=0), second.mean(axis=0)
    one, two = (
        (rows - mean) / np.sqrt(len(rows) - 1) for rows, mean in zip((first, second), means, strict=True)
    )
    root = np.linalg.svd(one @ two.T, compute_uv=False).sum()
    gap = means[0] - means[1]
    return float(gap @ gap + np.square(one).sum() + np.square(two).sum() - 2 * root)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities of logits [..., C]."""
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


def kl_divergence(real_logits: np.ndarray, generated_logits: np.ndarray) -> np.ndarray:
    """KL(real || generated) of each pair of clips [n], from logits [n, C] by softmax (not sigmoid)."""
    real, generated = softmax(real_logits), softmax(generated_logits)
    tiny = np.finfo(np.float64).tiny
    return np.asarray((real * (np.log(real + tiny) - np.log(generated + tiny))).sum(axis=-1))


def inception_score(logits: np.ndarray, splits: int = IS_SPLITS) -> float:
    """Inception score of generated clips from logits [n, C]: exp of the mean KL(p || split's mean), averaged.

    Biased for few clips: n below ten times C is not comparable. Raises ValueError for fewer clips than
    splits.
    """
    if len(logits) < splits:
        raise ValueError(f"{len(logits)} clips for {splits} splits")
    shuffled = softmax(logits[np.random.RandomState(IS_SEED).permutation(len(logits))])
    scores = []
    for part in range(splits):
        rows = shuffled[part * len(logits) // splits : (part + 1) * len(logits) // splits]
        tiny = np.finfo(np.float64).tiny
        divergence = (rows * (np.log(rows + tiny) - np.log(rows.mean(axis=0) + tiny))).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores))


def mel_filters() -> np.ndarray:
    """Triangular filters [257, 64] on the HTK mel scale, 125 to 7500 Hz, at 16 kHz."""

    def mel(hertz: np.ndarray) -> np.ndarray:
        return np.asarray(1127 * np.log1p(hertz / 700))

    low, high = mel(np.array([LOW_HZ, HIGH_HZ]))
    edges = np.linspace(float(low), float(high), MEL_BANDS + 2)
    at = mel(np.arange(FFT // 2 + 1) * 16_000 / FFT)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.asarray(np.clip(np.minimum(rising, falling), 0, None))


def mel_statistics(pcm: np.ndarray) -> np.ndarray | None:
    """Mean, spread and spread of change of each band of the log-mel spectrogram: float [192].

    `pcm` int16 [n] at 16 kHz; None below a tenth of a second. It needs no weights and replaces an audio
    network in `FD-mel`, which is no FD of any paper.
    """
    if len(pcm) < 1600:
        return None
    audio = pcm.astype(np.float64) / 32768
    audio -= audio.mean()
    frames = np.lib.stride_tricks.sliding_window_view(audio, WINDOW)[::HOP]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    log_mel = np.log(np.abs(np.fft.rfft(frames * window, FFT)) @ mel_filters() + 0.01)
    return np.concatenate([log_mel.mean(0), log_mel.std(0), np.diff(log_mel, axis=0).std(0)])
