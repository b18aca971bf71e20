"""The index of a tar: position, checksum, duration and frame size of every sample.

`train-000000.tar.index.npz` has these columns over the samples in tar order: key, offset and length of all
members together, crc32 of those bytes, seconds, width_px, height_px, and the `sizes` [n, M] of the `members`.
`shard` is the manifest's entry of the tar as JSON. Columns of numbers open in a second for a million samples.
Nothing is pickled.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from uniavgen.shards.errors import UserError

INDEX_VERSION = 2
"""Version 1, until release 0.1: JSON without CRC, frame size and member sizes."""
_COLUMNS = {
    "offset": np.int64,
    "length": np.int64,
    "crc32": np.uint32,
    "seconds": np.float64,
    "width_px": np.int32,
}
_COLUMNS |= {"height_px": np.int32}


@dataclass(frozen=True)
class SampleSpan:
    """Position of one sample in a tar: bytes [offset, offset + length) are all its members.

    `sizes` are in bytes, by member name, in tar order.
    """

    key: str
    offset: int
    length: int
    crc32: int
    seconds: float
    width_px: int
    height_px: int
    sizes: dict[str, int]


@dataclass(frozen=True)
class ShardIndex:
    """The index of one tar: `sizes` int64 [n, M], other columns [n]. `shard` is the manifest's entry."""

    key: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    crc32: np.ndarray
    seconds: np.ndarray
    width_px: np.ndarray
    height_px: np.ndarray
    sizes: np.ndarray
    members: tuple[str, ...]
    shard: dict[str, Any]

    def __len__(self) -> int:
        return len(self.key)

    @staticmethod
    def of(spans: Sequence[SampleSpan], shard: dict[str, Any]) -> ShardIndex:
        """The index of samples that all have the same members, as the sample contract says."""
        members = tuple(spans[0].sizes) if spans else ()
        columns = {
            name: np.array([getattr(span, name) for span in spans], kind) for name, kind in _COLUMNS.items()
        }
        sizes = np.array([[span.sizes[name] for name in members] for span in spans], np.int64)
        keys = np.array([span.key.encode() for span in spans])
        return ShardIndex(
            key=keys, sizes=sizes.reshape(len(spans), len(members)), members=members, shard=shard, **columns
        )

    def sample_keys(self) -> list[str]:
        return [key.decode() for key in self.key.tolist()]

    def to_bytes(self) -> bytes:
        """The content of the file. Equal indexes give equal bytes."""
        columns = {name: getattr(self, name) for name in ("key", "sizes", *_COLUMNS)}
        out = io.BytesIO()
        np.savez(
            out,
            version=np.int64(INDEX_VERSION),
            members=np.array(self.members),
            shard=np.array(json.dumps(self.shard)),
            **columns,
        )
        return out.getvalue()

    @staticmethod
    def from_bytes(data: bytes, where: object = "") -> ShardIndex:
        """Parse the content of the file. Raises UserError of kind `damaged-index` or `wrong-version`."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                version = int(file["version"])
                if version != INDEX_VERSION:
                    text = f"the shard's index has version {version}, this program reads {INDEX_VERSION}"
                    raise UserError(
                        text, where=where, hint="write the shards again: uniavgen shard", kind="wrong-version"
                    )
                columns = {name: file[name].astype(kind) for name, kind in _COLUMNS.items()}
                members, shard = tuple(file["members"].tolist()), json.loads(str(file["shard"]))
                keys, sizes = file["key"].astype(np.bytes_), file["sizes"].astype(np.int64)
                index = ShardIndex(key=keys, sizes=sizes, members=members, shard=shard, **columns)
        except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile) as error:
            hint = "remove it and run uniavgen shard again"
            raise UserError(
                "the shard's index is damaged", where=where, hint=hint, kind="damaged-index"
            ) from error
        if {len(index.sizes), *(len(getattr(index, name)) for name in _COLUMNS)} != {len(index)}:
            raise UserError(
                "the shard's index is damaged: its columns differ in length",
                where=where,
                kind="damaged-index",
            )
        return index

    def to_energon(self) -> bytes:
        """The `.tar.idx` of Megatron-Energon: uint64 offsets of all samples and the end of the last one."""
        ends = self.offset[-1:] + self.length[-1:]
        return np.concatenate([self.offset, ends]).astype("<u8").tobytes()


def index_name(tar: str) -> str:
    """File name of the index of a tar."""
    return f"{tar}.index.npz"
