"""The sampler: rounds are permutations, batches are of one bucket, shuffling is uniform."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.shards.read.sampler import BucketSampler


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch=st.integers(1, 6),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_batches_are_of_one_bucket_and_rounds_are_permutations(
    sizes: list[int], batch: int, seed: int, data: st.DataObject
) -> None:
    bucket = np.array(
        data.draw(st.permutations([name for name, size in enumerate(sizes) for _ in range(size)]))
    )
    sampler = BucketSampler(bucket, batch=batch, seed=seed)
    steps = 12 * len(bucket) // batch
    taken = [[sampler.sample_at(step * batch + lane) for lane in range(batch)] for step in range(steps)]
    by_bucket: dict[int, list[int]] = {name: [] for name in set(bucket.tolist())}
    for step, samples in enumerate(taken):
        assert {bucket[sample] for sample in samples} == {sampler.bucket_at(step * batch)}
        by_bucket[sampler.bucket_at(step * batch)] += samples
    for name, drawn in by_bucket.items():
        size = int((bucket == name).sum())
        for first in range(0, len(drawn) - size + 1, size):
            assert sorted(drawn[first : first + size]) == np.flatnonzero(bucket == name).tolist(), (
                "a round is not a permutation"
            )
        excess = len(drawn) - steps * batch * size / len(bucket)
        assert abs(excess) <= (len(sizes) + 1) * batch + size, "a bucket is drawn too often"


def test_shuffle_is_uniform_over_the_whole_split() -> None:
    """Each of 24 samples comes first equally often; neighbours in the tar are as far apart as by chance."""
    samplers = [BucketSampler(np.zeros(24, int), seed=seed) for seed in range(3000)]
    sequences = np.array([[sampler.sample_at(p) for p in range(24)] for sampler in samplers])
    counts = np.bincount(sequences[:, 0], minlength=24)
    assert ((counts - 125) ** 2 / 125).sum() < 49.7  # chi squared, 23 degrees of freedom, p = 0.001
    distance = np.abs(np.diff(sequences[:, :2].astype(int), axis=1)).mean()
    assert distance == pytest.approx(25 / 3, abs=0.4)  # mean distance of two of 24 at random
