"""The samples that a stream numbers, and where each of them is.

A `SampleOrder` says which sample has which number. It outlives the tars: when shards are written anew, a
running or resumed stage finds the same samples by their keys in the new tars. Samples that are in none of
them any more, because they were deleted or a new policy drops them, are gone; the others keep their numbers.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np

from uniavgen.shards.errors import UserError
from uniavgen.shards.tar.index import ShardIndex
from uniavgen.shards.timing import VIDEO_FPS

ORDER_VERSION = 1
GONE = -1
"""Shard number of a sample that no tar holds."""
_COLUMNS = ("key", "seconds", "width_px", "height_px")


@dataclass(frozen=True)
class SampleOrder:
    """Key (bytes), length and frame size of every sample, each [n], by the sample's number."""

    key: np.ndarray
    seconds: np.ndarray
    width_px: np.ndarray
    height_px: np.ndarray

    def __len__(self) -> int:
        return len(self.key)

    def save(self, path: Path) -> None:
        """Replace the file by rename. Raises OSError."""
        out = io.BytesIO()
        np.savez(out, version=np.int64(ORDER_VERSION), **{name: getattr(self, name) for name in _COLUMNS})
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{uuid4().hex}.part")
        try:
            part.write_bytes(out.getvalue())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    @staticmethod
    def load(path: Path) -> SampleOrder:
        """Raises UserError of kind `damaged-order` or `wrong-version`."""
        hint = "restore it from a copy, or train in another --run folder"
        try:
            with np.load(path, allow_pickle=False) as file:
                if int(file["version"]) != ORDER_VERSION:
                    raise UserError(
                        f"the order of samples has version {int(file['version'])}, this program reads "
                        f"{ORDER_VERSION}",
                        where=path,
                        hint="use the matching release of uniavgen",
                        kind="wrong-version",
                    )
                return SampleOrder(**{name: file[name] for name in _COLUMNS})
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"the order of samples cannot be read: {error}", where=path, hint=hint, kind="damaged-order"
            ) from error


@dataclass(frozen=True)
class SampleLocations:
    """Tar (an index of `names`, or `GONE`), span and CRC-32 of every sample of an order, each [n]."""

    names: tuple[str, ...]
    shard: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc32: np.ndarray

    @property
    def gone(self) -> int:
        """Number of samples that no tar holds."""
        return int((self.shard == GONE).sum())


def all_samples(indexes: Mapping[str, ShardIndex]) -> tuple[SampleOrder, SampleLocations]:
    """All samples of some tars, in the order of the tars."""
    opened = list(indexes.values())
    column = {
        name: np.concatenate([getattr(index, name) for index in opened])
        for name in (*_COLUMNS, "offset", "length", "crc32")
    }
    shard = np.repeat(np.arange(len(opened), dtype=np.int32), [len(index) for index in opened])
    order = SampleOrder(**{name: column[name] for name in _COLUMNS})
    return order, SampleLocations(tuple(indexes), shard, column["offset"], column["length"], column["crc32"])


def select(
    order: SampleOrder, locations: SampleLocations, chosen: np.ndarray
) -> tuple[SampleOrder, SampleLocations]:
    """The chosen samples, by bool [n] or by numbers."""
    columns = ("shard", "offset", "length", "crc32")
    return (
        SampleOrder(**{name: getattr(order, name)[chosen] for name in _COLUMNS}),
        SampleLocations(locations.names, *(getattr(locations, name)[chosen] for name in columns)),
    )


def locate(order: SampleOrder, indexes: Mapping[str, ShardIndex]) -> SampleLocations:
    """Where the samples of an order are in these tars."""
    there, locations = all_samples(indexes)
    if not len(there):
        none = np.zeros(len(order), np.int64)
        return SampleLocations((), np.full(len(order), GONE, np.int32), none, none, none)
    by_key = np.argsort(there.key, kind="stable")
    rank = np.searchsorted(there.key, order.key, sorter=by_key)
    row = by_key[np.minimum(rank, len(by_key) - 1)]
    found = there.key[row] == order.key
    _, located = select(there, locations, row)
    return SampleLocations(
        located.names,
        np.where(found, located.shard, GONE).astype(np.int32),
        located.offset,
        located.length,
        located.crc32,
    )


def has_frames(order: SampleOrder, frames: int) -> np.ndarray:
    """bool [n]: samples that last `frames` pixel frames or more, by their length in the index."""
    return np.floor(order.seconds * VIDEO_FPS + 0.5) >= frames
