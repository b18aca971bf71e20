"""Erasing for good: rows without a trace in older versions of a table, and tombstones that tell what was erased.

    forgotten.json    {"erasures": n, "names": [...]}: hashes of the ids of sources and speakers that were forgotten

A tombstone is a hash of a content hash: it recognises the same video when it is offered again, and tells nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from uniavgen.shards.corpus.tables import KEYS, TABLE_CONFIGURATION, Corpus, schema
from uniavgen.shards.errors import UserError

TOMBSTONES = "forgotten.json"


def tombstone(identity: str) -> str:
    """What is left of the id of a forgotten source or speaker."""
    return hashlib.sha256(f"forgotten:{identity}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Tombstones:
    """Who was forgotten. `deletions` counts how often: part of the corpus's version, since rewritten tables count anew."""

    deletions: int = 0
    names: frozenset[str] = frozenset()

    def contains(self, identity: str) -> bool:
        """Whether a source_id or a speaker was forgotten."""
        return tombstone(identity) in self.names


def read_tombstones(root: Path) -> Tombstones:
    """Those of a corpus folder. Raises UserError where they are damaged."""
    path = root / TOMBSTONES
    if not path.exists():
        return Tombstones()
    try:
        found = json.loads(path.read_text())
        return Tombstones(int(found["erasures"]), frozenset(str(name) for name in found["names"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "the list of what was forgotten is damaged", where=path, hint="restore it from a backup"
        ) from error


def add_tombstones(root: Path, identities: Iterable[str]) -> None:
    """Add tombstones; done before anything is erased, so that a killed erasure lets nothing come back."""
    known = read_tombstones(root)
    names = sorted(known.names | {tombstone(identity) for identity in identities})
    part = root / f".{TOMBSTONES}.part"
    part.write_text(json.dumps({"erasures": known.deletions + 1, "names": names}, indent=0) + "\n")
    os.replace(part, root / TOMBSTONES)


def rewrite_table(corpus: Corpus, table: str, keep: str) -> None:
    """Write a table anew with the rows for which the SQL `keep` is true: older versions, their files and statistics go.

    Killed at any instant, the table is whole, either as before or as wanted: `Corpus.open` finishes a half-done swap.
    """
    from deltalake import DeltaTable, write_deltalake

    path, fresh, gone = (corpus.root / name for name in (table, f".{table}.fresh", f".{table}.gone"))
    kinds = schema(table)
    names = ", ".join(f'"{name}"' for name in kinds.names)
    with corpus.writing():  # what another run commits meanwhile would be lost
        if not DeltaTable.is_deltatable(str(path)):
            return
        shutil.rmtree(fresh, ignore_errors=True)
        wrote = False
        for batch in corpus.batches(f"SELECT {names} FROM {table} WHERE {keep} ORDER BY {KEYS[table]}"):
            new = None if wrote else TABLE_CONFIGURATION
            write_deltalake(str(fresh), batch.cast(kinds), mode="append", configuration=new)
            wrote = True
        if not wrote:
            write_deltalake(str(fresh), kinds.empty_table(), configuration=TABLE_CONFIGURATION)
        os.replace(path, gone)
        os.replace(fresh, path)
        shutil.rmtree(gone)
