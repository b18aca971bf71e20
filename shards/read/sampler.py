"""The endless order of training: which sample stands at which position, as a pure function of (seed, buckets, position).

In: the bucket of each sample, batch sizes, a seed. Out: the sample at any position, without what came before it.

Every bucket is an endless row of its own: its samples in a new uniform order in every round. Cut into batches, the rows of
all buckets are dealt out epoch by epoch, the batches of an epoch in a uniform order. So a batch is of one bucket, and of any
bucket every sample comes once per round: none is lost at the end of an epoch, since a batch may reach into the next round.
With one bucket that is plain shuffling: every epoch is one uniform permutation of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np


class BucketSampler:
    """Positions of the endless order to samples 0 .. n-1. `bucket` int [n] holds at least one sample.

    Step s has positions [s * batch, (s + 1) * batch). With `sizes`, batches of bucket b are of sizes[b] samples: `batch` is
    the largest of them then, and of a smaller batch's positions only the first `size_at` hold a sample.
    """

    def __init__(
        self, bucket: np.ndarray, *, batch: int = 1, sizes: Sequence[int] = (), seed: int = 0
    ) -> None:
        self.seed = seed
        self._buckets = np.unique(bucket)
        self._sizes = [sizes[name] if sizes else batch for name in self._buckets.tolist()]
        self.batch = max(sizes) if sizes else batch
        self._rows = [np.flatnonzero(bucket == name) for name in self._buckets]
        self._epoch_steps = sum(
            Fraction(len(row), size) for row, size in zip(self._rows, self._sizes, strict=True)
        )
        # a few megabytes a million samples: the orders in use and the next ones, never all that were
        self._permutation = lru_cache(maxsize=2 * len(self._rows))(self._shuffled)
        self._deal = lru_cache(maxsize=2)(self._dealt)

    def sample_at(self, position: int) -> int:
        """The sample at `position`, which counts samples through all epochs. Raises IndexError where it holds none."""
        step, lane = divmod(position, self.batch)
        row, batch_of_row = self._batch_at(step)
        if lane >= self._sizes[row]:
            raise IndexError(f"the batch of step {step} has {self._sizes[row]} samples, not {lane + 1}")
        members = self._rows[row]
        round_, place = divmod(batch_of_row * self._sizes[row] + lane, len(members))
        return int(members[self._permutation(row, round_)[place]])

    def bucket_at(self, position: int) -> int:
        """The bucket of the batch that `position` lies in."""
        return int(self._buckets[self._batch_at(position // self.batch)[0]])

    def batch_size_at(self, position: int) -> int:
        """Samples of the batch that `position` lies in."""
        return self._sizes[self._batch_at(position // self.batch)[0]]

    def replacement_position(self, position: int, attempt: int) -> int:
        """The same place in the `attempt`-th next batch of the same bucket: where to look for another sample instead."""
        step, lane = divmod(position, self.batch)
        row = self._batch_at(step)[0]
        while attempt:
            step += 1
            attempt -= self._batch_at(step)[0] == row
        return step * self.batch + lane

    def _batch_at(self, step: int) -> tuple[int, int]:
        """(row, number of the batch within that row) of the batch at a step."""
        if len(self._rows) == 1:
            return 0, step
        # rounding down leaves an epoch at most a batch a row short of its share, so the guess is at most a little early
        epoch = int(step // self._epoch_steps)
        while sum(self._batches_before(epoch + 1)) <= step:
            epoch += 1
        rows, numbers = self._deal(epoch)
        place = step - sum(self._batches_before(epoch))
        return int(rows[place]), int(numbers[place])

    def _batches_before(self, epoch: int) -> list[int]:
        """Batches that each row has given by the start of an epoch."""
        return [epoch * len(row) // size for row, size in zip(self._rows, self._sizes, strict=True)]

    def _dealt(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """An epoch's batches in their order: the row of each, and the batch's number within that row."""
        before, after = self._batches_before(epoch), self._batches_before(epoch + 1)
        due = [end - start for start, end in zip(before, after, strict=True)]
        rows = np.repeat(np.arange(len(due)), due)
        rows = np.random.default_rng([self.seed, epoch, len(due)]).permutation(rows)
        numbers = np.empty(len(rows), np.int64)
        for row, (start, end) in enumerate(zip(before, after, strict=True)):
            numbers[rows == row] = np.arange(start, end)
        return rows, numbers

    def _shuffled(self, row: int, round_: int) -> np.ndarray:
        samples = len(self._rows[row])
        return np.random.default_rng([self.seed, round_, row]).permutation(samples).astype(np.int32)
