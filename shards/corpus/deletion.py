"""Permanent deletion: remove rows from every version of a table, and record tombstones of what was deleted.

    forgotten.json    {"erasures": n, "names": [...]}: hashes of the ids of deleted sources and speakers

A tombstone is a hash of a content hash. It recognises the same video when a user ingests it again, and
reveals nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from uniavgen.shards.corpus.schema import KEYS, schema
from uniavgen.shards.corpus.tables import TABLE_CONFIGURATION, Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.uris import table_uri

TOMBSTONES = "forgotten.json"


def tombstone(identity: str) -> str:
    """The hash that is stored in place of the id of a deleted source or speaker."""
    return hashlib.sha256(f"forgotten:{identity}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Tombstones:
    """All tombstones of a corpus. The number of `deletions` is part of the corpus version, because the
    version of a rewritten table starts at 0 again."""

    deletions: int = 0
    names: frozenset[str] = frozenset()

    def contains(self, identity: str) -> bool:
        """True if a source_id or a speaker was deleted."""
        return tombstone(identity) in self.names


def read_tombstones(root: Path) -> Tombstones:
    """Read the tombstones of a corpus folder. Raises UserError if the file is damaged."""
    path = root / TOMBSTONES
    if not path.exists():
        return Tombstones()
    try:
        content = json.loads(path.read_text())
        return Tombstones(int(content["erasures"]), frozenset(str(name) for name in content["names"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            "the list of deleted sources is damaged", where=path, hint="restore it from a backup"
        ) from error


def add_tombstones(root: Path, identities: Iterable[str]) -> None:
    """Record tombstones, before rows are deleted: then a killed deletion lets nothing come back."""
    known = read_tombstones(root)
    names = sorted(known.names | {tombstone(identity) for identity in identities})
    part = root / f".{TOMBSTONES}.part"
    part.write_text(json.dumps({"erasures": known.deletions + 1, "names": names}, indent=0) + "\n")
    os.replace(part, root / TOMBSTONES)


def rewrite_table(corpus: Corpus, table: str, keep: str) -> None:
    """Rewrite a table with only the rows for which the SQL `keep` is true, and remove all older versions.

    A kill at any instant leaves the complete old table or the complete new one: `Corpus.open` completes the
    swap.
    """
    from deltalake import DeltaTable, write_deltalake

    path, new, old = (corpus.root / name for name in (table, f".{table}.fresh", f".{table}.gone"))
    columns = schema(table)
    names = ", ".join(f'"{name}"' for name in columns.names)
    with corpus.writing():  # else a commit of another run could be lost
        if not DeltaTable.is_deltatable(table_uri(path)):
            return
        shutil.rmtree(new, ignore_errors=True)
        wrote = False
        for batch in corpus.batches(f"SELECT {names} FROM {table} WHERE {keep} ORDER BY {KEYS[table]}"):
            configuration = None if wrote else TABLE_CONFIGURATION
            write_deltalake(table_uri(new), batch.cast(columns), mode="append", configuration=configuration)
            wrote = True
        if not wrote:
            write_deltalake(table_uri(new), columns.empty_table(), configuration=TABLE_CONFIGURATION)
        os.replace(path, old)
        os.replace(new, path)
        shutil.rmtree(old)
