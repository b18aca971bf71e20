"""Read shards for training: random access to an endless seeded sequence of samples.

`position` counts samples through endless epochs. The sample at a position is a pure function of (shards,
split, seed, buckets, batch, position). So step s of a run has positions [s * batch, (s + 1) * batch) for any
number of ranks and workers, and a resumed run continues at any position without reading earlier samples. The
shuffle is uniform over the whole split (within a bucket, if there are buckets).

`state(position)` holds everything that the sequence depends on. `SampleStream.resume` continues from it on
any number of ranks, also if the corpus has grown since: the run keeps the shards that it started with.
"""

from __future__ import annotations

import json
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from uniavgen.shards.buckets import Buckets, WindowBuckets
from uniavgen.shards.config import ErrorBudgetConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.error_budget import ErrorBudget
from uniavgen.shards.read.sampler import BucketSampler
from uniavgen.shards.sample import Sample, from_members
from uniavgen.shards.store import Store
from uniavgen.shards.tar.index import ShardIndex, index_name
from uniavgen.shards.tar.manifest import MANIFEST_VERSION
from uniavgen.shards.tar.tar_reader import read_members

STATE_VERSION = 1
OPEN_THREADS = 16
"""Number of indexes read at once when a stream opens: an object store needs tens of milliseconds for each."""


class SampleStream:
    """The samples of one split in an endless seeded sequence.

    `root` is a corpus's `shards` folder, local or any fsspec URL. With `buckets`, every `batch` positions
    belong to one bucket. If `WindowBuckets` have different batch sizes, a step has as many positions as the
    largest batch, and some positions of a smaller one are empty (see `BucketSampler`); `read` skips them.
    `shards` (name to SHA-256) selects tars; default: all of the split. Raises UserError if there are no
    shards, the split is empty, a selected tar is missing or changed, or an index is damaged or of another
    version.
    """

    def __init__(
        self,
        root: str,
        split: str = "train",
        seed: int = 0,
        *,
        buckets: Buckets | WindowBuckets | None = None,
        batch: int = 1,
        shards: Mapping[str, str] | None = None,
        error_budget: ErrorBudgetConfig | None = None,
    ) -> None:
        self.root, self.split, self.buckets = str(root), split, buckets
        self.store = Store(self.root)
        entries = self._entries()
        if shards is not None:
            entries = self._selected(entries, shards)
        if not entries:
            raise UserError(
                f"the {split} split is empty",
                where=root,
                hint="loosen the policy or add videos, then shard again",
            )
        self.shards: dict[str, str] = {entry["name"]: entry["sha256"] for entry in entries}
        with ThreadPoolExecutor(OPEN_THREADS, thread_name_prefix="open") as pool:
            indexes = list(pool.map(self._index, self.shards))
        self._names = list(self.shards)
        self._shard = np.repeat(np.arange(len(indexes), dtype=np.int32), [len(index) for index in indexes])
        self._keys, self._offset, self._length, self._crc32 = (
            np.concatenate([getattr(index, name) for index in indexes])
            for name in ("key", "offset", "length", "crc32")
        )
        sizes = buckets.batches if isinstance(buckets, WindowBuckets) else ()
        self.sampler = BucketSampler(_bucket_numbers(indexes, buckets), batch=batch, sizes=sizes, seed=seed)
        self.error_budget = ErrorBudget(error_budget or ErrorBudgetConfig(), len(self), self.root)

    @staticmethod
    def resume(
        root: str, state: Mapping[str, Any], *, error_budget: ErrorBudgetConfig | None = None
    ) -> tuple[SampleStream, int]:
        """Open the stream of a state; returns it with the position to continue at.

        Raises UserError of kind `shards-changed` if one of its shards is missing or changed.
        """
        if state.get("version") != STATE_VERSION:
            raise UserError(f"unknown version {state.get('version')} of a stream state", kind="wrong-version")
        kind = WindowBuckets if "shapes" in (state["buckets"] or ()) else Buckets
        buckets = kind.model_validate(state["buckets"]) if state["buckets"] else None
        options = {"buckets": buckets, "batch": state["batch"], "shards": state["shards"]}
        stream = SampleStream(root, state["split"], state["seed"], **options, error_budget=error_budget)
        return stream, state["position"]

    def state(self, position: int) -> dict[str, Any]:
        """Everything that the samples from `position` on depend on, as JSON."""
        return {
            "version": STATE_VERSION,
            "split": self.split,
            "seed": self.sampler.seed,
            "batch": self.sampler.batch,
            "buckets": self.buckets.model_dump(mode="json") if self.buckets else None,
            "shards": self.shards,
            "position": position,
        }

    def __len__(self) -> int:
        """Number of samples in one epoch."""
        return len(self._keys)

    @property
    def keys(self) -> list[str]:
        """Key of every sample, in the order of the tars."""
        return [key.decode() for key in self._keys.tolist()]

    def sample_at(self, position: int) -> Sample:
        """Read the sample at a position.

        Raises UserError of kind `damaged-sample` that names the shard, or `too-many-damaged` above the error
        budget.
        """
        return self._read(self.sampler.sample_at(position))

    def shard_and_key_at(self, position: int) -> tuple[str, str]:
        """(shard, key) of the sample at a position, without reading it."""
        return self._shard_and_key(self.sampler.sample_at(position))

    def sample_by_index(self, index: int) -> Sample:
        """Read sample 0 .. len - 1 in the order of the tars. Raises the errors of `sample_at`."""
        return self._read(index)

    def sample_by_key(self, key: str) -> Sample:
        """Read the sample with this key. Raises UserError if the split has none."""
        matches = np.flatnonzero(self._keys == key.encode())
        if not len(matches):
            first = self._keys[0].decode()
            raise UserError(
                f"no sample {key} in split {self.split}",
                where=self.store.root,
                hint=f"the first one is {first}",
            )
        return self._read(int(matches[0]))

    def read(
        self, start: int = 0, *, rank: int = 0, world: int = 1, ahead: int = 0
    ) -> Iterator[tuple[int, Sample]]:
        """Yield (position, sample) of this reader without end: start + rank, then every `world`-th position.

        The readers (ranks times workers) read each position once together. `ahead` samples are read ahead in
        as many threads. Positions of damaged samples are skipped; too many raise the error of `sample_at`.
        """
        if not 0 <= rank < world:
            raise UserError(f"there is no reader {rank} of {world}", hint="readers count from 0")
        positions = range(start + rank, 2**62, world)
        if not ahead:
            yield from ((position, sample) for position in positions if (sample := self._or_none(position)))
            return
        with ThreadPoolExecutor(ahead, thread_name_prefix="stream") as pool:
            waiting: deque[tuple[int, Future[Sample | None]]] = deque()
            try:
                for position in positions:
                    waiting.append((position, pool.submit(self._or_none, position)))
                    if len(waiting) > ahead:
                        due, future = waiting.popleft()
                        if sample := future.result():
                            yield due, sample
            finally:
                for _, future in waiting:
                    future.cancel()

    def _or_none(self, position: int) -> Sample | None:
        try:
            return self.sample_at(position)
        except IndexError:  # an empty position of a smaller batch
            return None
        except UserError as error:
            if error.kind != "damaged-sample":
                raise
            return None

    def _shard_and_key(self, index: int) -> tuple[str, str]:
        return self._names[self._shard[index]], self._keys[index].decode()

    def _read(self, index: int) -> Sample:
        shard, key = self._shard_and_key(index)
        where = self.store.full_path(shard)
        self.error_budget.count_read()
        try:
            span = self.store.read_span(shard, int(self._offset[index]), int(self._length[index]))
            if zlib.crc32(span) != self._crc32[index]:
                raise UserError(
                    f"the bytes of sample {key} changed since they were written",
                    where=where,
                    kind="damaged-sample",
                )
            return from_members({"__key__": key, **read_members(span, key, where)})
        except UserError as error:
            if error.kind == "damaged-sample":
                self.error_budget.record_failure(key, error)
            raise

    def _entries(self) -> list[dict[str, Any]]:
        """Read the manifest's entries of this split."""
        content = self.store.read_file(
            "manifest.json", missing="no shards here", hint="write them: uniavgen shard --corpus DIR"
        )
        try:
            manifest = json.loads(content)
            version, entries = manifest["manifest_version"], manifest["shards"]
            of_split = [
                entry
                for entry in entries
                if entry["split"] == self.split and entry["name"] and entry["sha256"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                "the manifest is damaged", where=self.store.root, hint="run uniavgen shard again"
            ) from error
        if version != MANIFEST_VERSION:
            text = f"the shards' manifest has version {version}, this program reads {MANIFEST_VERSION}"
            raise UserError(
                text,
                where=self.store.root,
                hint="write the shards again: uniavgen shard",
                kind="wrong-version",
            )
        return of_split

    def _index(self, shard: str) -> ShardIndex:
        name = index_name(shard)
        content = self.store.read_file(name, missing="a shard has no index", hint="run uniavgen shard again")
        return ShardIndex.from_bytes(content, self.store.full_path(name))

    def _selected(self, entries: list[dict[str, Any]], shards: Mapping[str, str]) -> list[dict[str, Any]]:
        """The entries of these shards, in this order."""
        by_name = {entry["name"]: entry for entry in entries}
        changed = [
            name
            for name, digest in shards.items()
            if name not in by_name or by_name[name]["sha256"] != digest
        ]
        if changed:
            raise UserError(
                f"{len(changed)} of the run's {len(shards)} shards are missing or changed, "
                f"first {changed[0]}",
                where=self.store.root,
                hint="restore them, or start again on the current shards",
                kind="shards-changed",
            )
        return [by_name[name] for name in shards]


def _bucket_numbers(indexes: Sequence[ShardIndex], buckets: Buckets | WindowBuckets | None) -> np.ndarray:
    """The bucket of every sample int64 [n]; 0 without buckets."""
    if not buckets:
        return np.zeros(sum(len(index) for index in indexes), np.int64)
    return np.concatenate([buckets.of(index.seconds, index.width_px, index.height_px) for index in indexes])
