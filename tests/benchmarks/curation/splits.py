"""Hours lost by the train/val split, fresh and as the corpus grows, on made speaker and face embeddings.

    python tests/benchmarks/curation/splits.py [--speakers 100000] [--steps 10000,25000,50000,75000,100000]

Where the spread comes from:

- Voices. The ECAPA model's own classifier has one vector for each of the 7,205 speakers of VoxCeleb 1 and
  2. Of their pairs 1.1e-4 have a cosine of at least 0.3, 5.5e-6 of at least 0.4, 8.5e-7 of at least 0.5; mean
  0.005, deviation 0.074. `narrow` imitates these. Speakers that the model was not trained on are closer
  together: at the model's published equal error rate of 0.9 % the threshold is about 0.25. `wide` imitates
  that: 1 % of pairs reach 0.25.
- Faces. dlib's documented bound (distance 0.6, here a cosine of 0.915) gives 99.4 % accuracy on LFW, so about
  0.3 % of pairs of different persons reach it. The mean cosine of different persons is 0.82.

Every speaker has a gamma-distributed number of kept seconds (mean 300 s). `used` near pairs are those below
the cap (`max_near_pairs`); `leaks` are near pairs on two sides: both persons had their side before, one of
them by a speaker that was found to be the same person as one on the other side.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from uniavgen.curation.config import SplitConfig
from uniavgen.curation.people.identities import (
    KINDS,
    MIN_NEAR_PAIRS,
    Embeddings,
    NearPairs,
    connected_components,
    find_pairs_above,
    limit_near_pairs,
)
from uniavgen.curation.people.splits import NEITHER, TRAIN, VAL, Person, assign_sides, group_speakers

FAMILIES = 7205
SPREADS = {"narrow": (181, 0.28, 0.0), "wide": (140, 0.35, 0.25)}
"""Voices: dimensions, cosine within a family of similar voices, weight of the common direction."""

FACE_DIMENSIONS, FACE_COSINE = 26, 0.82
STORED_PAIRS_PER_SPEAKER = 64
VAL_SHARE = 0.1


def unit(rows: np.ndarray) -> np.ndarray:
    normalised: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return normalised


def make_voices(count: int, spread: str) -> np.ndarray:
    """Unit vectors [count, dimensions]: families of similar voices around a common direction."""
    draw = np.random.default_rng(0)
    dimensions, within, common = SPREADS[spread]
    families = unit(draw.standard_normal((FAMILIES, dimensions)))
    own = unit(draw.standard_normal((count, dimensions)))
    voices = np.sqrt(within) * families[draw.integers(0, FAMILIES, count)] + np.sqrt(1 - within) * own
    return unit(unit(voices) + common * unit(draw.standard_normal((1, dimensions))))


def make_faces(count: int) -> np.ndarray:
    """Unit vectors [count, 128] around one direction."""
    draw = np.random.default_rng(1)
    own = np.zeros((count, 128))
    own[:, :FACE_DIMENSIONS] = unit(draw.standard_normal((count, FACE_DIMENSIONS)))
    return unit(np.sqrt(FACE_COSINE) * unit(draw.standard_normal((1, 128))) + np.sqrt(1 - FACE_COSINE) * own)


def find_near(embeddings: dict[str, np.ndarray], count: int, first_new: int) -> tuple[np.ndarray, NearPairs]:
    """Same and near pairs of the first `count` speakers, of which those from `first_new` are new."""
    config = SplitConfig()
    thresholds = {
        "voice": (config.same_voice, config.near_voice),
        "face": (config.same_face, config.near_face),
    }
    same_parts, near_parts = [], []
    for number, kind in enumerate(KINDS):
        same, near = thresholds[kind]
        pairs, cosine = find_pairs_above(
            Embeddings(np.arange(count), embeddings[kind][:count]),
            near,
            first_new=first_new,
            max_pairs=max(MIN_NEAR_PAIRS, STORED_PAIRS_PER_SPEAKER * count),
            always=same,
        )
        is_near = cosine < same
        same_parts.append(pairs[~is_near])
        near_parts.append(NearPairs(pairs[is_near], cosine[is_near], np.full(is_near.sum(), number)))
    return np.concatenate(same_parts), NearPairs.concatenate(near_parts)


def run(embeddings: dict[str, np.ndarray], steps: list[int]) -> None:
    """Grow a corpus through these numbers of speakers and print the split after each."""
    seconds = np.random.default_rng(2).gamma(1.0, 300.0, steps[-1])
    before: list[str] = [""] * steps[-1]
    same_parts, near_parts, first_new = [], [], 0
    for count in steps:
        began = time.perf_counter()
        same, near = find_near(embeddings, count, first_new)
        same_parts.append(same)
        near_parts.append(near)
        compared_s = time.perf_counter() - began
        all_near = NearPairs.concatenate(near_parts)
        labels = connected_components(count, [np.concatenate(same_parts)])
        limited, raised = limit_near_pairs(labels, all_near)
        crowding = np.bincount(all_near.pairs.ravel(), minlength=count)
        began = time.perf_counter()
        names = [f"{i:06d}" for i in range(count)]
        groups, pairs = group_speakers(names, labels.tolist(), limited.tolist())
        persons = []
        for group in groups:
            members = [int(name) for name in group]
            sides_before = frozenset({before[i] for i in members} & {TRAIN, VAL})
            persons.append(
                Person(group, float(seconds[members].sum()), sides_before, (), int(crowding[members].sum()))
            )
        sides = assign_sides(persons, pairs, SplitConfig(val_share=VAL_SHARE))
        assigned_s = time.perf_counter() - began
        of_side = dict.fromkeys((TRAIN, VAL, NEITHER), 0.0)
        for person, side in zip(persons, sides, strict=True):
            of_side[side] += person.seconds
            for name in person.speakers:
                before[int(name)] = side
        total = sum(of_side.values())
        leaks = sum({sides[one], sides[other]} == {TRAIN, VAL} for one, other in pairs)
        lost, val = (100 * of_side[side] / total for side in (NEITHER, VAL))
        print(
            f"{count:8,} speakers {len(persons):8,} persons {len(all_near.pairs):10,} near"
            f" {len(pairs):7,} used {lost:7.3f} % lost {val:6.2f} % val {leaks:5} leaks"
            f" {compared_s:6.1f} s compared {assigned_s:5.1f} s assigned; raised "
            + (", ".join(f"{kind} {cosine:.3f}" for kind, cosine in raised.items()) or "none"),
            flush=True,
        )
        first_new = count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speakers", type=int, default=100_000)
    parser.add_argument("--steps", default="", help="numbers of speakers as the corpus grows")
    parser.add_argument("--voices", choices=SPREADS, default="wide")
    options = parser.parse_args()
    steps = [int(step) for step in options.steps.split(",") if step]
    embeddings = {
        "voice": make_voices(options.speakers, options.voices),
        "face": make_faces(options.speakers),
    }
    run(embeddings, [options.speakers])
    if steps:
        run(embeddings, steps)


if __name__ == "__main__":
    main()
