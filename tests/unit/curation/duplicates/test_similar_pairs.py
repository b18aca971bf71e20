"""Similar pairs: alignments equal a naive comparison, and the pairs found are the planted ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.curation.config import DuplicateConfig
from uniavgen.curation.duplicates.similar_pairs import Anchors, audio_prints, find_pairs, fit, video_prints
from uniavgen.shards.corpus.fingerprints import MIRRORED


@given(st.integers(0, 1000), st.sampled_from([1.0, 1.1, 1 / 1.1]), st.booleans())
@settings(max_examples=25, deadline=None)
def test_fit_equals_naive_comparison(seed: int, speed: float, mirrored: bool) -> None:
    draw = np.random.default_rng(seed)
    sizes = draw.integers(5, 30, 2)
    values = draw.integers(1, 2**63, sizes.sum())
    values[draw.random(len(values)) < 0.1] = 0
    if mirrored:
        shared = min(sizes)
        values[sizes[0] : sizes[0] + shared] = np.where(values[:shared], values[:shared] ^ MIRRORED, 0)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    prints = video_prints(values, starts, draw.uniform(0, 3, 2))
    a_s, b_s = draw.uniform(0.5, 3, 2)
    anchors = Anchors(np.array([0]), np.array([1]), np.array([a_s], np.float32), np.array([b_s], np.float32))
    fits = fit(prints, anchors, speed, bits=63, mirrors=MIRRORED, slack=1)
    best = 1.0
    for shift in (-1, 0, 1):
        as_is, mirrored_bits = [], []
        for i in range(sizes[0]):
            from_anchor = float(prints.first_s[0]) + i * 0.25 - a_s
            index = (b_s + from_anchor / speed - float(prints.first_s[1])) / 0.25
            if abs(index % 1 - 0.5) < 1e-3:
                return  # both neighbours are equally near
            j = round(index) + shift
            if 0 <= j < sizes[1] and values[i] and values[sizes[0] + j]:
                difference = int(values[i]) ^ int(values[sizes[0] + j])
                as_is.append(difference.bit_count() / 63)
                mirrored_bits.append((difference ^ MIRRORED).bit_count() / 63)
        if as_is:
            best = min(best, np.mean(as_is), np.mean(mirrored_bits))
    assert fits.distance[0] == pytest.approx(best)


def test_pairs_among_thousands_are_the_planted_ones() -> None:
    draw = np.random.default_rng(0)
    count, items = 4000, 15
    video = draw.integers(1, 2**63, (count, items)).astype(np.uint64)
    sound = draw.integers(1, 2**32, (count, items)).astype(np.uint64)
    copies = {(i, count - 1 - i) for i in range(100)}
    for one, other in copies:
        noise = np.zeros(items, np.uint64)
        for bit in range(63):
            noise |= (draw.random(items) < 0.015).astype(np.uint64) << np.uint64(bit)
        video[other] = video[one] ^ noise if one % 2 else video[other]
        sound[other] = sound[one] ^ (noise & np.uint64(2**32 - 1)) if one % 3 else sound[other]
    starts = np.arange(count + 1) * items
    pairs = find_pairs(
        video_prints(video.ravel(), starts, np.zeros(count)),
        audio_prints(sound.ravel(), starts),
        np.zeros(count, np.int64),
        DuplicateConfig(),
    )
    matched = set(zip(pairs.a.tolist(), pairs.b.tolist(), strict=True))
    expected = {(one, other) for one, other in copies if one % 2 or one % 3}
    assert matched <= expected
    assert len(matched) >= 0.98 * len(expected)
    for a, picture, heard in zip(pairs.a.tolist(), pairs.picture, pairs.sound, strict=True):
        assert np.isnan(picture) == (a % 2 == 0)
        assert np.isnan(heard) == (a % 3 == 0)
