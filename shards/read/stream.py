"""Read shards for training: random access to an endless seeded sequence of samples.

`position` counts samples through endless epochs. The sample at a position is a pure function of (shards,
split, seed, buckets, batch, position). So step s of a run has positions [s * batch, (s + 1) * batch) for any
number of ranks and workers, and a resumed run continues at any position without reading earlier samples. The
shuffle is uniform over the whole split (within a bucket, if there are buckets).

`state(position)` holds everything that the sequence depends on. `SampleStream.resume` continues from it on
any number of ranks, also if the corpus has grown since: the run keeps the shards that it started with. With
a `SampleOrder` a stream also continues when its shards were written anew (`shards.read.sample_order`), before
it is opened or while it is read.
"""

from __future__ import annotations

import json
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any

import numpy as np

from uniavgen.shards.buckets import Buckets, WindowBuckets
from uniavgen.shards.config import ErrorBudgetConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.error_budget import ErrorBudget
from uniavgen.shards.read.sample_order import (
    GONE,
    SampleLocations,
    SampleOrder,
    all_samples,
    has_frames,
    locate,
    select,
)
from uniavgen.shards.read.sampler import BucketSampler, Place
from uniavgen.shards.sample import Sample, from_members
from uniavgen.shards.store import Store
from uniavgen.shards.tar.index import ShardIndex, index_name
from uniavgen.shards.tar.manifest import MANIFEST_VERSION
from uniavgen.shards.tar.tar_reader import read_members
from uniavgen.shards.timing import VIDEO_FPS

STATE_VERSION = 1
OPEN_THREADS = 16
"""Number of indexes read at once when a stream opens: an object store needs tens of milliseconds for each."""


class SampleStream:
    """The samples of one split in an endless seeded sequence.

    `root` is a corpus's `shards` folder, local or any fsspec URL. With `buckets`, every `batch` positions
    belong to one bucket. If `WindowBuckets` have different batch sizes, a step has as many positions as the
    largest batch, and some positions of a smaller one are empty (see `BucketSampler`); `read` skips them.
    `shards` (name to SHA-256) selects tars; default: all of the split. `frames` leaves out samples that are
    shorter. `order` are the samples with their numbers; default: all of the tars. With an `order`, selected
    tars may be missing: its samples are looked for in all tars of the split. `place`: where the sequence was
    changed.

    Raises UserError if there are no shards, the split is empty, a selected tar is missing or changed, an
    index is damaged or of another version, or no sample is left.
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
        frames: int = 0,
        order: SampleOrder | None = None,
        place: Place | None = None,
        error_budget: ErrorBudgetConfig | None = None,
    ) -> None:
        self.root, self.split, self.buckets, self.frames = str(root), split, buckets, frames
        self.place = place or Place()
        self.store = Store(self.root)
        self.notices: list[str] = []
        """Lines for people about samples that are gone; the reader of the stream empties the list."""
        self._following = Lock()
        entries = self._entries()
        if shards is not None:
            changed = _changed_shards(entries, shards)
            if changed and order is None:
                raise self._shards_changed(changed, shards)
            if not changed:
                by_name = {entry["name"]: entry for entry in entries}
                entries = [by_name[name] for name in shards]
        if not entries:
            raise UserError(
                f"the {split} split is empty",
                where=root,
                hint="loosen the policy or add videos, then shard again",
            )
        self.shards: dict[str, str] = {entry["name"]: entry["sha256"] for entry in entries}
        indexes = self._indexes(self.shards)
        if order is None:
            everything, located = all_samples(indexes)
            self.order, self._located = select(everything, located, has_frames(everything, frames))
            self.shorter = len(everything) - len(self.order)
            self.shorter_s = float(everything.seconds.sum() - self.order.seconds.sum())
            if not len(self.order):
                raise self._all_too_short(everything)
        else:
            self.order, self._located, self.shorter, self.shorter_s = order, locate(order, indexes), 0, 0.0
            self._notice_gone()
        sizes = buckets.batches if isinstance(buckets, WindowBuckets) else ()
        self.sampler = BucketSampler(
            _bucket_numbers(self.order, buckets),
            batch=batch,
            sizes=sizes,
            seed=seed,
            consumed=self.place.consumed,
        )
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
        options["frames"] = state.get("frames", 0)
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
            "frames": self.frames,
            "position": position,
        }

    def __len__(self) -> int:
        """Number of samples in one epoch."""
        return len(self.order)

    @property
    def keys(self) -> list[str]:
        """Key of every sample, in the order of the tars."""
        return [key.decode() for key in self.order.key.tolist()]

    @property
    def line(self) -> str:
        """One line for people: samples and hours, and how many are left out because they are shorter."""
        seconds, everything = float(self.order.seconds.sum()), len(self) + self.shorter
        if not self.shorter:
            return f"{everything:,} {self.split} samples, {seconds / 3600:,.2f} h"
        hours = f"{seconds / 3600:,.2f} of {(seconds + self.shorter_s) / 3600:,.2f} h"
        return (
            f"{len(self):,} of {everything:,} {self.split} samples ({100 * len(self) / everything:.0f} %), "
            f"{hours}, last the {self.frames / VIDEO_FPS:.2f} s of the window; the others are left out"
        )

    @property
    def gone(self) -> int:
        """Number of samples of the order that no tar holds any more."""
        return self._located.gone

    def sample_at(self, position: int) -> Sample:
        """Read the sample at a position.

        Raises UserError of kind `damaged-sample` that names the shard, `too-many-damaged` above the error
        budget, or `gone-sample` if no tar holds the sample any more.
        """
        return self._read(self.sampler.sample_at(position))

    def shard_and_key_at(self, position: int) -> tuple[str, str]:
        """(shard, key) of the sample at a position, without reading it. Raises UserError of `gone-sample`."""
        return self._shard_and_key(self._located, self.sampler.sample_at(position))

    def sample_by_index(self, index: int) -> Sample:
        """Read sample 0 .. len - 1 in the order of the tars. Raises the errors of `sample_at`."""
        return self._read(index)

    def sample_by_key(self, key: str) -> Sample:
        """Read the sample with this key. Raises UserError if the split has none."""
        matches = np.flatnonzero(self.order.key == key.encode())
        if not len(matches):
            first = self.order.key[0].decode()
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
            if error.kind not in ("damaged-sample", "gone-sample"):
                raise
            return None

    def _shard_and_key(self, located: SampleLocations, index: int) -> tuple[str, str]:
        key, shard = self.order.key[index].decode(), int(located.shard[index])
        if shard == GONE:
            raise UserError(
                f"sample {key} is in no shard any more", where=self.store.root, kind="gone-sample"
            )
        return located.names[shard], key

    def _read(self, index: int) -> Sample:
        self.error_budget.count_read()
        located = self._located
        try:
            try:
                return self._read_from(located, index)
            except UserError as error:
                # a run that reads for days outlives its tars: `shard` writes others, then removes these
                if error.kind != "damaged-sample" or not self.follow_shards(located):
                    raise
            return self._read_from(self._located, index)
        except UserError as error:
            if error.kind == "damaged-sample":
                self.error_budget.record_failure(self.order.key[index].decode(), error)
            raise

    def _read_from(self, located: SampleLocations, index: int) -> Sample:
        shard, key = self._shard_and_key(located, index)
        where = self.store.full_path(shard)
        span = self.store.read_span(shard, int(located.offset[index]), int(located.length[index]))
        if zlib.crc32(span) != located.crc32[index]:
            raise UserError(
                f"the bytes of sample {key} changed since they were written",
                where=where,
                kind="damaged-sample",
            )
        return from_members({"__key__": key, **read_members(span, key, where)})

    def follow_shards(self, used: SampleLocations | None = None) -> bool:
        """Look for the samples in the tars of the present manifest, if tars of this stream are gone.

        Returns whether the locations changed; also if another thread did it since `used` was read.
        """
        with self._following:
            if used is not None and self._located is not used:
                return True
            try:
                entries = self._entries()
                if not _changed_shards(entries, self.shards):
                    return False
                shards = {entry["name"]: entry["sha256"] for entry in entries}
                self._located = locate(self.order, self._indexes(shards))
            except UserError:  # the samples cannot be read either, and their error says more
                return False
            self.shards = shards
            self._notice_gone()
            return True

    def _notice_gone(self) -> None:
        """Add a notice about samples that are gone. Raises UserError if all are."""
        gone = self.gone
        if gone == len(self):
            raise UserError(
                f"none of the {gone} samples with which the stage began is in the {self.split} shards",
                where=self.store.root,
                hint="restore them, or train in another --run folder",
                kind="shards-changed",
            )
        if gone:
            first = self.order.key[int(np.argmax(self._located.shard == GONE))].decode()
            self.notices.append(
                f"{gone} of the {len(self)} {self.split} samples with which the stage began are in no shard "
                f"any more, first {first}; it continues with the others"
            )

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

    def _indexes(self, shards: Mapping[str, str]) -> dict[str, ShardIndex]:
        with ThreadPoolExecutor(OPEN_THREADS, thread_name_prefix="open") as pool:
            return dict(zip(shards, pool.map(self._index, shards), strict=True))

    def _index(self, shard: str) -> ShardIndex:
        name = index_name(shard)
        content = self.store.read_file(name, missing="a shard has no index", hint="run uniavgen shard again")
        return ShardIndex.from_bytes(content, self.store.full_path(name))

    def _shards_changed(self, changed: list[str], shards: Mapping[str, str]) -> UserError:
        return UserError(
            f"{len(changed)} of the run's {len(shards)} shards are missing or changed, first {changed[0]}",
            where=self.store.root,
            hint="restore them, or begin the order of samples anew with --accept-changes",
            kind="shards-changed",
        )

    def _all_too_short(self, order: SampleOrder) -> UserError:
        return UserError(
            f"none of the {len(order)} {self.split} samples lasts {self.frames / VIDEO_FPS:.2f} s, the "
            f"longest {order.seconds.max():.2f} s",
            where=self.store.root,
            hint=f"lower train.data.frames from {self.frames} to the length of the clips, or add "
            "train.data.buckets",
            kind="too-short",
        )


def _changed_shards(entries: Sequence[Mapping[str, Any]], shards: Mapping[str, str]) -> list[str]:
    """Names of shards that the entries of a manifest lack or have otherwise."""
    present = {entry["name"]: entry["sha256"] for entry in entries}
    return [name for name, digest in shards.items() if present.get(name) != digest]


def _bucket_numbers(order: SampleOrder, buckets: Buckets | WindowBuckets | None) -> np.ndarray:
    """The bucket of every sample int64 [n]; 0 without buckets."""
    if not buckets:
        return np.zeros(len(order), np.int64)
    return buckets.of(order.seconds, order.width_px, order.height_px)
