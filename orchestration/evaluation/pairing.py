"""Agreement of picture and sound, and of voices, from embeddings and logits. None of them loads a network.

Sources: ImageBind score and DeSync as in av-benchmark; SyncNet's LSE-C and LSE-D are in `ingest.models`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DESYNC_GRID = np.linspace(-2.0, 2.0, 21)
"""Offsets of Synchformer's classes, in seconds."""
DESYNC_MIN_S = 4.8
"""Shortest clip that Synchformer can score: 14 segments."""


def cosine(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each row of [..., d] with the row of the other."""
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return np.asarray((first * second).sum(-1) / np.maximum(norms, 1e-12))


def imagebind_score(video: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """IB-score of each clip from ImageBind embeddings [n, 1024]: the cosine times 100, as papers print it."""
    return 100 * cosine(video, audio)


def desync(logits: np.ndarray) -> np.ndarray:
    """DeSync of each clip in seconds, from Synchformer's logits [n, ends, 21] of the clip's first and last
    4.8 s.

    The absolute offset of the most probable class, taken before any mean: signed offsets would cancel.
    Chance is about 1.05, the resolution 0.2.
    """
    return np.asarray(np.abs(DESYNC_GRID[logits.argmax(axis=-1)]).mean(axis=-1))


def clipped_offset(offset_ms: float) -> float:
    """Absolute offset in seconds, at most 2: the stand-in of DeSync for a measured offset."""
    return min(2.0, abs(offset_ms) / 1000)


@dataclass(frozen=True)
class PairScorer:
    """Linear maps of voices [n, a] and faces [n, b] into one space; a higher cosine is a better fit."""

    voice_mean: np.ndarray
    face_mean: np.ndarray
    voice_map: np.ndarray
    face_map: np.ndarray

    def score(self, voices: np.ndarray, faces: np.ndarray) -> np.ndarray:
        """Score of each pair [n]."""
        return cosine((voices - self.voice_mean) @ self.voice_map, (faces - self.face_mean) @ self.face_map)


def fit_pair_scorer(
    voices: np.ndarray, faces: np.ndarray, dimensions: int = 8, ridge: float = 0.1
) -> PairScorer:
    """Canonical correlation analysis with ridge, of voices [n, a] and the faces [n, b] that they belong to.

    Give one row per person. `ridge` is the share of the mean variance that is added to every variance.
    Heuristic: a learned two-tower network needs thousands of persons.
    """
    means = voices.mean(0), faces.mean(0)
    one, two = voices - means[0], faces - means[1]
    roots = []
    for rows in (one, two):
        covariance = rows.T @ rows / len(rows)
        covariance += ridge * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        values, vectors = np.linalg.eigh(covariance)
        roots.append(vectors / np.sqrt(np.maximum(values, 1e-12)) @ vectors.T)
    left, strength, right = np.linalg.svd(roots[0] @ (one.T @ two / len(one)) @ roots[1])
    kept = min(dimensions, len(strength))
    # weaker directions count less, as in the prediction of one side from the other
    weight = np.sqrt(strength[:kept])
    return PairScorer(*means, roots[0] @ left[:, :kept] * weight, roots[1] @ right[:kept].T * weight)
