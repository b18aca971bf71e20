"""TC-face: whether voices fit faces, by a scorer that is fitted to other persons of the corpus.

The score is the probability that a video's voice fits its face better than another video's face: 0.5 is
chance.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from uniavgen.orchestration.evaluation.controls import LEVELS
from uniavgen.orchestration.evaluation.pairing import PairScorer, cosine, fit_pair_scorer
from uniavgen.orchestration.evaluation.results import GENERATED, Result
from uniavgen.orchestration.evaluation.statistics import (
    matched_auc,
    order_of_means,
    set_score,
)
from uniavgen.orchestration.evaluation.summary import MetricScore, vectors_of

METRIC, CHANCE = "TC-face", 0.5
MIN_PERSONS = 16
"""Fewest persons that a scorer is fitted to. Heuristic: with fewer it learns persons, not what they share."""


def training_pairs(rows: Sequence[Mapping[str, Any]], held_out: Collection[str]) -> np.ndarray:
    """Mean voice [192] and face [128] of each person of train but `held_out` ones, as rows [n, 320]."""
    persons: dict[str, list[np.ndarray]] = {}
    for row in rows:
        if row["split"] == "train" and row["person"] not in held_out and row["voice"] and row["face"]:
            persons.setdefault(row["person"], []).append(np.concatenate([row["voice"], row["face"]]))
    means = [np.mean(vectors, axis=0) for _, vectors in sorted(persons.items())]
    return np.stack(means) if means else np.zeros((0, 0))


def face_voice_score(
    results: Sequence[Result], training: np.ndarray, voice_size: int
) -> tuple[MetricScore | None, str]:
    """TC-face of the generated videos with its controls; or None and the reason.

    `training` [n, voice_size + face_size] are rows of persons. Controls: real clips with half of, then all
    faces given to the next clip.
    """
    if len(training) < MIN_PERSONS:
        return (
            None,
            f"the corpus has {len(training)} other persons with voice and face, {MIN_PERSONS} are needed",
        )
    scorer = fit_pair_scorer(training[:, :voice_size], training[:, voice_size:])
    generated, real = pairs_of(results, GENERATED), pairs_of(results, "real")
    if len(generated) < 2 or len(real) < 2:
        return None, "two videos with a voice and a face are needed"

    def auc(rows: np.ndarray) -> float:
        return pair_auc(scorer, rows[:, :voice_size], rows[:, voice_size:])

    means = {}
    for level, share in zip(LEVELS, (0.0, 0.5, 1.0), strict=True):
        changed = real.copy()
        count = round(share * len(real))
        changed[:count, voice_size:] = np.roll(real[:, voice_size:], 1, axis=0)[:count]
        means[level] = auc(changed)
    order = order_of_means(means, "higher", len(real))
    if order.holds and not set_score(real, auc).low > CHANCE:
        order = replace(order, why=f"{len(real)} real pairs are not above chance with 95 % confidence")
    return MetricScore(METRIC, set_score(generated, auc), order), ""


def pair_auc(scorer: PairScorer, voices: np.ndarray, faces: np.ndarray) -> float:
    """Probability that a pair of rows [n, a], [n, b] scores above a voice with another row's face.

    Rows that are equal (drawn twice by a bootstrap) are no other rows. 0.5 if all are equal.
    """
    one = (voices - scorer.voice_mean) @ scorer.voice_map
    two = (faces - scorer.face_mean) @ scorer.face_map
    scores = cosine(one[:, None], two[None])
    other = (np.abs(faces[:, None] - faces[None]) > 0).any(axis=-1)
    return matched_auc(np.diag(scores).tolist(), scores[other].tolist()) if other.any() else 0.5


def pairs_of(results: Sequence[Result], level: str) -> np.ndarray:
    """Voice and face of every video that has both, as rows."""
    voices, faces = (vectors_of(results, name, level) for name in ("voice", "face"))
    names = sorted(set(voices) & set(faces))
    return np.array([[*voices[name], *faces[name]] for name in names])
