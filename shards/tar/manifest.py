"""The manifest of a `shards` folder (`manifest.json`): its tars with counts and hashes, totals, versions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import SCHEMA_VERSION
from uniavgen.shards.tar.index import ShardIndex

MANIFEST_VERSION = 2
"""Version 1: until release 0.1. Version 2 adds licences per shard."""


@dataclass(frozen=True)
class ShardEntry:
    """The manifest's entry of one tar. `licences` counts the samples by the licence of their source.

    `inputs` changes with everything that would change the tar, see `write.changes`.
    """

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
    """A manifest on disk. `current`: it has the version of this program; otherwise only `names` are read."""

    current: bool
    names: frozenset[str] = frozenset()
    entries: tuple[ShardEntry, ...] = ()
    packing: dict[str, Any] | None = None


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a `shards` folder; None if it is missing or damaged.

    Raises UserError of kind `wrong-version` for a newer manifest, which must not be overwritten.
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
            f"these shards have version {versions[0]}.{versions[1]}, "
            f"this program reads {MANIFEST_VERSION}.{SCHEMA_VERSION}",
            where=folder,
            hint="use the matching release of uniavgen, or move them away",
            kind="wrong-version",
        )
    return manifest


def read_shard_keys(folder: Path, entry: ShardEntry) -> list[str]:
    """Keys of a shard's samples in tar order; none if its index is missing, damaged or of another version."""
    try:
        return ShardIndex.from_bytes((folder / entry.index).read_bytes()).sample_keys()
    except (OSError, UserError):
        return []
