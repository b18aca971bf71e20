"""Reading shards for training: every sample at its place in an endless seeded order, by index instead of replay.

`position` counts samples through endless epochs. Which sample stands at a position is a pure function of
(shards, split, seed, buckets, batch, position): step s of a run takes positions [s * batch, (s + 1) * batch) whatever the
number of ranks and workers, and a resumed run continues at any position without reading what went before. The shuffle is
uniform over the whole split (within a bucket, where there are buckets), since samples are read by their place, one by one.

`state(position)` names everything that the order hangs on; `SampleStream.resume` goes on from it on any number of ranks,
also when the corpus has grown since: the run keeps to the shards that it began with.
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
"""Indexes that are fetched at once when a stream opens: an object store answers each in tens of milliseconds."""


class SampleStream:
    """The samples of one split in an endless seeded order.

    `root` is a corpus's `shards` folder, local or any fsspec URL. With `buckets`, every `batch` positions are of one bucket;
    where `WindowBuckets` give each bucket a batch size of its own, a step has as many positions as the largest, and of a
    smaller batch's only the first hold a sample (`shards.order`): ask `sample_at`, `read` passes over the others.
    `shards` (name to SHA-256) keeps to these tars; by default it is all of the split. Raises UserError where there are no
    shards, the split is empty, a named tar is gone or changed, or an index is damaged or of another version.
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
            entries = self._the_same(entries, shards)
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
        self.sampler = BucketSampler(_bucket_of_each(indexes, buckets), batch=batch, sizes=sizes, seed=seed)
        self.error_budget = ErrorBudget(error_budget or ErrorBudgetConfig(), len(self), self.root)

    @staticmethod
    def resume(
        root: str, state: Mapping[str, Any], *, error_budget: ErrorBudgetConfig | None = None
    ) -> tuple[SampleStream, int]:
        """The stream that a state was taken from, and the position to go on at.

        Raises UserError of kind `shards-changed` where its shards are not there as they were.
        """
        if state.get("version") != STATE_VERSION:
            raise UserError(
                f"a stream state of version {state.get('version')} is unknown", kind="wrong-version"
            )
        kind = WindowBuckets if "shapes" in (state["buckets"] or ()) else Buckets
        buckets = kind.model_validate(state["buckets"]) if state["buckets"] else None
        order = {"buckets": buckets, "batch": state["batch"], "shards": state["shards"]}
        return SampleStream(root, state["split"], state["seed"], **order, error_budget=error_budget), state[
            "position"
        ]

    def state(self, position: int) -> dict[str, Any]:
        """Everything that the samples from `position` on hang on, as JSON."""
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
        """Samples in one epoch."""
        return len(self._keys)

    @property
    def keys(self) -> list[str]:
        """Every sample's key, in the order of the tars."""
        return [key.decode() for key in self._keys.tolist()]

    def sample_at(self, position: int) -> Sample:
        """The sample at a position of the endless order.

        Raises UserError of kind `damaged-sample` naming the shard, or `too-many-damaged` once there were too many.
        """
        return self._read(self.sampler.sample_at(position))

    def shard_and_key_at(self, position: int) -> tuple[str, str]:
        """(shard, key) of the sample at a position, without reading it."""
        return self._name(self.sampler.sample_at(position))

    def sample_by_index(self, place: int) -> Sample:
        """The sample at a place in the order of the tars, 0 .. len - 1. Raises as `sample_at` does."""
        return self._read(place)

    def sample_by_key(self, key: str) -> Sample:
        """The sample of that key. Raises UserError where the split has none."""
        found = np.flatnonzero(self._keys == key.encode())
        if not len(found):
            first = self._keys[0].decode()
            raise UserError(
                f"no sample {key} in split {self.split}",
                where=self.store.root,
                hint=f"the first one is {first}",
            )
        return self._read(int(found[0]))

    def read(
        self, start: int = 0, *, rank: int = 0, world: int = 1, ahead: int = 0
    ) -> Iterator[tuple[int, Sample]]:
        """(position, sample) of this reader's share: start + rank, then every `world`-th position, without end.

        Readers are ranks times workers; together they read each position once. `ahead` samples are read ahead in as many
        threads. A damaged sample costs its position only; too many raise, as `sample_at` does.
        """
        if not 0 <= rank < world:
            raise UserError(f"reader {rank} of {world} cannot be", hint="readers count from 0")
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
        except IndexError:  # a place that a smaller batch leaves empty
            return None
        except UserError as error:
            if error.kind != "damaged-sample":
                raise
            return None

    def _name(self, place: int) -> tuple[str, str]:
        return self._names[self._shard[place]], self._keys[place].decode()

    def _read(self, place: int) -> Sample:
        shard, key = self._name(place)
        where = self.store.full_path(shard)
        self.error_budget.count_read()
        try:
            span = self.store.read_span(shard, int(self._offset[place]), int(self._length[place]))
            if zlib.crc32(span) != self._crc32[place]:
                raise UserError(
                    f"the bytes of sample {key} are not those that were written",
                    where=where,
                    kind="damaged-sample",
                )
            return from_members({"__key__": key, **read_members(span, key, where)})
        except UserError as error:
            if error.kind == "damaged-sample":
                self.error_budget.record_failure(key, error)
            raise

    def _entries(self) -> list[dict[str, Any]]:
        """The manifest's entries of this split."""
        content = self.store.read_file(
            "manifest.json", missing="no shards here", hint="write them: uniavgen shard --corpus DIR"
        )
        try:
            manifest = json.loads(content)
            version, entries = manifest["manifest_version"], manifest["shards"]
            found = [
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
        return found

    def _index(self, shard: str) -> ShardIndex:
        name = index_name(shard)
        content = self.store.read_file(name, missing="a shard has no index", hint="run uniavgen shard again")
        return ShardIndex.from_bytes(content, self.store.full_path(name))

    def _the_same(self, entries: list[dict[str, Any]], shards: Mapping[str, str]) -> list[dict[str, Any]]:
        """The entries of these shards, in their order."""
        now = {entry["name"]: entry for entry in entries}
        changed = [
            name for name, digest in shards.items() if name not in now or now[name]["sha256"] != digest
        ]
        if changed:
            raise UserError(
                f"{len(changed)} of the run's {len(shards)} shards are gone or changed, first {changed[0]}",
                where=self.store.root,
                hint="bring them back, or begin the order anew on the shards there are",
                kind="shards-changed",
            )
        return [now[name] for name in shards]


def _bucket_of_each(indexes: Sequence[ShardIndex], buckets: Buckets | WindowBuckets | None) -> np.ndarray:
    """The bucket of every sample; all in one where there are no buckets."""
    if not buckets:
        return np.zeros(sum(len(index) for index in indexes), np.int64)
    return np.concatenate([buckets.of(index.seconds, index.width_px, index.height_px) for index in indexes])
