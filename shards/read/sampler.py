"""Stateless bucketed shuffling: position -> sample, a pure function of (seed, buckets, position).

Each bucket is an endless sequence: its samples in a new uniform permutation every round. The sequences are
cut into batches, and the batches of an epoch are mixed in a uniform permutation. So a batch has samples of
one bucket, and every sample of a bucket comes once per round; none is lost at the end of an epoch, because a
batch may continue into the next round. With one bucket this is plain shuffling: each epoch is one uniform
permutation of all samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Place:
    """Where a stage's sequence of samples was changed, as by another batch: from `step` on it has `position`.

    `consumed`: number of samples of each bucket that were dealt before; the sampler continues behind them.
    """

    step: int = 0
    position: int = 0
    consumed: Mapping[int, int] = field(default_factory=dict)

    def position_at(self, step: int, batch: int) -> int:
        """The first position of a step whose steps have `batch` positions each."""
        return self.position + (step - self.step) * batch


class BucketSampler:
    """Endless sequence of samples 0 .. n-1. `bucket` int [n] with n > 0 is the bucket of each sample.

    Step s has positions [s * batch, (s + 1) * batch). With `sizes`, a batch of bucket b has sizes[b] samples
    and `batch` is the largest size. Only the first `batch_size_at` positions of a smaller batch have a
    sample. `consumed`: samples of each bucket that were dealt before position 0.
    """

    def __init__(
        self,
        bucket: np.ndarray,
        *,
        batch: int = 1,
        sizes: Sequence[int] = (),
        seed: int = 0,
        consumed: Mapping[int, int] | None = None,
    ) -> None:
        self.seed = seed
        self._buckets = np.unique(bucket)  # below, `bucket` is an index of these
        self._sizes = [sizes[name] if sizes else batch for name in self._buckets.tolist()]
        self.batch = max(sizes) if sizes else batch
        self._consumed = [(consumed or {}).get(name, 0) for name in self._buckets.tolist()]
        self._samples = [np.flatnonzero(bucket == name) for name in self._buckets]
        self._epoch_steps = sum(
            Fraction(len(samples), size) for samples, size in zip(self._samples, self._sizes, strict=True)
        )
        # 8 MB per million samples: the permutations of this round and the next
        self._permutation = lru_cache(maxsize=2 * len(self._samples))(self._shuffled)
        self._mixed = lru_cache(maxsize=2)(self._mixed_batches)

    def sample_at(self, position: int) -> int:
        """The sample at a position, counted through all epochs. Raises IndexError for an empty position."""
        step, lane = divmod(position, self.batch)
        bucket, number = self._batch_at(step)
        if lane >= self._sizes[bucket]:
            raise IndexError(f"the batch of step {step} has {self._sizes[bucket]} samples, not {lane + 1}")
        samples = self._samples[bucket]
        dealt = self._consumed[bucket] + number * self._sizes[bucket]
        round_, index = divmod(dealt + lane, len(samples))
        return int(samples[self._permutation(bucket, round_)[index]])

    def bucket_at(self, position: int) -> int:
        """The bucket of the batch at `position`."""
        return int(self._buckets[self._batch_at(position // self.batch)[0]])

    def batch_size_at(self, position: int) -> int:
        """Number of samples of the batch at `position`."""
        return self._sizes[self._batch_at(position // self.batch)[0]]

    def consumed_at(self, position: int) -> dict[int, int]:
        """Samples of each bucket that were dealt before the step at `position`, by bucket number."""
        counts = [0] * len(self._samples)
        step = position // self.batch
        if len(self._samples) == 1:
            counts[0] = step
        else:
            epoch = self._epoch_of(step)
            buckets, _ = self._mixed(epoch)
            before = self._batches_before(epoch)
            within = np.bincount(buckets[: step - sum(before)], minlength=len(counts))
            counts = [done + int(more) for done, more in zip(before, within, strict=True)]
        return {
            int(name): dealt + count * size
            for name, dealt, count, size in zip(
                self._buckets, self._consumed, counts, self._sizes, strict=True
            )
        }

    def replacement_position(self, position: int, attempt: int) -> int:
        """The same position in the `attempt`-th next batch of the bucket, to replace an unusable sample."""
        step, lane = divmod(position, self.batch)
        bucket = self._batch_at(step)[0]
        while attempt:
            step += 1
            attempt -= self._batch_at(step)[0] == bucket
        return step * self.batch + lane

    def _batch_at(self, step: int) -> tuple[int, int]:
        """(bucket number, number of the batch within that bucket) of the batch at a step."""
        if len(self._samples) == 1:
            return 0, step
        epoch = self._epoch_of(step)
        buckets, numbers = self._mixed(epoch)
        index = step - sum(self._batches_before(epoch))
        return int(buckets[index]), int(numbers[index])

    def _epoch_of(self, step: int) -> int:
        # an epoch can lack one batch per bucket by rounding down, so this estimate is a little early at most
        epoch = int(step // self._epoch_steps)
        while sum(self._batches_before(epoch + 1)) <= step:
            epoch += 1
        return epoch

    def _batches_before(self, epoch: int) -> list[int]:
        """Number of batches of each bucket before an epoch."""
        return [
            epoch * len(samples) // size for samples, size in zip(self._samples, self._sizes, strict=True)
        ]

    def _mixed_batches(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The batches of an epoch in order: the bucket number of each, and its number within that bucket."""
        before, after = self._batches_before(epoch), self._batches_before(epoch + 1)
        counts = [end - start for start, end in zip(before, after, strict=True)]
        buckets = np.repeat(np.arange(len(counts)), counts)
        buckets = np.random.default_rng([self.seed, epoch, len(counts)]).permutation(buckets)
        numbers = np.empty(len(buckets), np.int64)
        for bucket, (start, end) in enumerate(zip(before, after, strict=True)):
            numbers[buckets == bucket] = np.arange(start, end)
        return buckets, numbers

    def _shuffled(self, bucket: int, round_: int) -> np.ndarray:
        """Permutation int32 of the samples of a bucket in one round."""
        samples = len(self._samples[bucket])
        return np.random.default_rng([self.seed, round_, bucket]).permutation(samples).astype(np.int32)
