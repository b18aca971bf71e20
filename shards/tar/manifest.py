"""The manifest of a `shards` folder: which tars belong to the corpus, with counts and hashes.

shards/manifest.json    versions, totals by split, and a `ShardEntry` per tar
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import SCHEMA_VERSION
from uniavgen.shards.tar.index import ShardIndex

MANIFEST_VERSION = 2
"""1 until 0.1; 2 has licences per shard. Shards of an older one are written anew."""


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest names it; `licences` counts its samples by the licence of their source."""

    name: str
    split: str
    samples: int
    seconds: float
    bytes: int
    sha256: str
    index: str
    inputs: str
    licences: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """The manifest that stands: names of its tars, and, where it is of this program's version, what it says of them."""

    current: bool
    names: frozenset[str] = frozenset()
    entries: tuple[ShardEntry, ...] = ()
    layout: dict[str, Any] | None = None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest that stands in a `shards` folder, None where there is none or it is damaged.

    Raises UserError of kind `wrong-version` for one from a newer program, which must not be written over.
    """
    try:
        content = json.loads((folder / "manifest.json").read_text())
        versions = int(content["manifest_version"]), int(content["schema_version"])
        current = versions == (MANIFEST_VERSION, SCHEMA_VERSION)
        entries = tuple(ShardEntry(**entry) for entry in content["shards"]) if current else ()
        names = frozenset(str(entry["name"]) for entry in content["shards"])
        manifest = Manifest(current, names, entries, content.get("layout"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if versions[0] > MANIFEST_VERSION or versions[1] > SCHEMA_VERSION:
        raise UserError(
            f"these shards are of version {versions[0]}.{versions[1]}, this program knows {MANIFEST_VERSION}.{SCHEMA_VERSION}",
            where=folder,
            hint="use the matching release of uniavgen, or move them away",
            kind="wrong-version",
        )
    return manifest


def read_shard_keys(folder: Path, entry: ShardEntry) -> list[str]:
    """Keys of a shard's samples in tar order, none where its index is missing, damaged or of another version."""
    try:
        return ShardIndex.from_bytes((folder / entry.index).read_bytes()).sample_keys()
    except (OSError, UserError):
        return []
