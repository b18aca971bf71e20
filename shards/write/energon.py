"""Index files of Megatron-Energon, so that it opens a `shards` folder without a preparation step.

    train-000000.tar.idx     offset of each sample in a tar
    .nv-meta/dataset.yaml    samples as raw bytes (`CrudeWebdataset`), which the user's cooker decodes
    .nv-meta/split.yaml      tars by split
    .nv-meta/.info.json      number of samples by tar
    .nv-meta/index.sqlite    every sample and member by key, with offset and size
    .nv-meta/index.uuid      changes with the shards; written last, as proof that the database is complete

The files equal those of `energon prepare` 7.4. Source: megatron-energon,
flavors/webdataset/{prepare,indexing}.py. Energon itself is not needed here.
"""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from uniavgen.shards.atomic_files import replace_file
from uniavgen.shards.tar.index import ShardIndex
from uniavgen.shards.tar.manifest import ShardEntry

META_FOLDER = ".nv-meta"
ENERGON_VERSION = "7.4.1"
"""Version of these formats, and of the Energon that the tests read them with."""

_DATASET = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset", "decoder": None}
_TABLES = """
CREATE TABLE samples (tar_file_id INTEGER NOT NULL, sample_key TEXT NOT NULL UNIQUE, \
sample_index INTEGER NOT NULL,
    byte_offset INTEGER, byte_size INTEGER);
CREATE TABLE sample_parts (tar_file_id INTEGER, sample_index INTEGER, part_name TEXT, \
content_byte_offset INTEGER,
    content_byte_size INTEGER);
"""
_INDEXES = """
CREATE INDEX idx_samples_by_tar_and_idx ON samples(tar_file_id, sample_index);
CREATE INDEX idx_sample_parts_seq ON sample_parts(tar_file_id, sample_index, content_byte_offset);
CREATE INDEX idx_sample_parts_full ON sample_parts(tar_file_id, sample_index, part_name, content_byte_offset,
    content_byte_size);
"""


def write_energon(folder: Path, splits: Mapping[str, Sequence[ShardEntry]]) -> None:
    """Bring `.nv-meta` and the `.idx` files in line with the shards. Raises OSError if the disk fails."""
    meta = folder / META_FOLDER
    meta.mkdir(exist_ok=True)
    entries = [entry for split in splits.values() for entry in split]

    def indexes() -> Iterator[ShardIndex]:
        return (ShardIndex.from_bytes((folder / entry.index).read_bytes(), entry.index) for entry in entries)

    for entry, index in zip(entries, indexes(), strict=True):
        replace_file(folder / f"{entry.name}.idx", index.to_energon())
    shards_id = str(
        uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([(entry.name, entry.sha256) for entry in entries]))
    )
    mark, database = meta / "index.uuid", meta / "index.sqlite"
    if not (mark.is_file() and mark.read_text() == shards_id and database.is_file()):
        mark.unlink(missing_ok=True)
        _write_database(database, indexes())
    for name, content in energon_texts(splits).items():
        replace_file(meta / name, content.encode())
    replace_file(mark, shards_id.encode())


def energon_texts(splits: Mapping[str, Sequence[ShardEntry]]) -> dict[str, str]:
    """The text files of `.nv-meta` by name."""
    import yaml

    counts = {entry.name: entry.samples for split in splits.values() for entry in split}
    parts: dict[str, Any] = {split: [entry.name for entry in entries] for split, entries in splits.items()}
    return {
        "dataset.yaml": yaml.safe_dump(_DATASET, sort_keys=False),
        "split.yaml": yaml.safe_dump({"split_parts": parts, "exclude": []}, sort_keys=False),
        ".info.json": json.dumps({"energon_version": ENERGON_VERSION, "shard_counts": counts}, indent=2),
    }


def _write_database(path: Path, indexes: Iterator[ShardIndex]) -> None:
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    connection = sqlite3.connect(part)
    try:
        connection.executescript(_TABLES)
        for tar, index in enumerate(indexes):
            connection.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?)", _sample_rows(tar, index))
            connection.executemany(
                "INSERT INTO sample_parts VALUES (?, ?, ?, ?, ?)", _member_rows(tar, index)
            )
        connection.executescript(_INDEXES)
        connection.commit()
    except sqlite3.OperationalError as error:  # for example of a full disk
        raise OSError(None, f"the index for Megatron-Energon cannot be written: {error}") from error
    finally:
        connection.close()
    os.replace(part, path)


def _sample_rows(tar: int, index: ShardIndex) -> Iterator[tuple[int, str, int, int, int]]:
    spans = zip(index.sample_keys(), index.offset.tolist(), index.length.tolist(), strict=True)
    return ((tar, key, number, offset, length) for number, (key, offset, length) in enumerate(spans))


def _member_rows(tar: int, index: ShardIndex) -> Iterator[tuple[int, int, str, int, int]]:
    """Rows of all members. Each member is a header of 512 bytes and its data, padded to a multiple of 512."""
    for number, (start, sizes) in enumerate(zip(index.offset.tolist(), index.sizes.tolist(), strict=True)):
        offsets = accumulate((512 + -(-size // 512) * 512 for size in sizes[:-1]), initial=start + 512)
        for name, offset, size in zip(index.members, offsets, sizes, strict=True):
            yield tar, number, name, offset, size
