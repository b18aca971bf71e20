"""The corpus folder: transactional tables (Delta Lake), queried with DuckDB, and paths of the clips' media.

    corpus.json                                      schema version
    sources/ clips/ failures/ decisions/ captions/   Delta tables, see schema.py
    media/<2 hex>/<clip_id>.{mp4,flac,face.npz}
    shards/  report/                                 made from the tables

Ids come from content, so the same input gives the same rows, and `upsert` makes writing them twice harmless.
Several runs may write at once: each transaction waits for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uniavgen.shards.corpus.schema import KEYS, schema
from uniavgen.shards.errors import UserError, printable
from uniavgen.shards.uris import check_table_path, exact_pattern, local_folder, table_file, table_uri

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from deltalake import DeltaTable
    from filelock import BaseFileLock

MARKER_PART = ".corpus.json.part"
CORPUS_VERSION = 3
"""Version 1: until release 0.1. Versions 2 and 3 (after 0.3) add columns; opening an older corpus adds them,
empty."""


VACUUM_AFTER_HOURS = 1
"""Files of older table versions are kept this long for running readers. Heuristic."""

TABLE_CONFIGURATION = {"delta.dataSkippingNumIndexedCols": "2"}
"""Configuration of a new table: statistics of its two id columns only. Those of 60 columns would fill log and
memory with every commit."""


def clip_id(source_id: str, start_s: float, end_s: float) -> str:
    """Id of a clip: a hash of its source and its milliseconds, so a second run gives the same id."""
    span = f"{source_id}:{round(start_s * 1000)}:{round(end_s * 1000)}"
    return hashlib.sha256(span.encode()).hexdigest()[:20]


class Corpus:
    """The tables and media of one corpus folder. A table that was never written reads as empty."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _lock(self) -> BaseFileLock:
        from filelock import FileLock

        return FileLock(self.root / ".tables.lock", is_singleton=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of the tables: transactions of other runs wait, those of this object do not.

        First completes what a run left that was killed between the two renames of `deletion.rewrite_table`.
        """
        with self._lock:
            for name in KEYS:
                new, old = self.root / f".{name}.fresh", self.root / f".{name}.gone"
                if old.exists():
                    if new.exists() and not (self.root / name).exists():
                        os.replace(new, self.root / name)
                    shutil.rmtree(old)
            yield

    def _wait_for_rewrite(self) -> None:
        """Wait for a table that is being rewritten: it has no folder for an instant."""
        if any((self.root / f".{name}.gone").exists() for name in KEYS):
            with self.writing():
                pass

    def _is_table(self, table: str) -> bool:
        """True if the table was ever written."""
        from deltalake import DeltaTable

        uri = table_uri(self.root / table)
        if not DeltaTable.is_deltatable(uri):
            self._wait_for_rewrite()
        return DeltaTable.is_deltatable(uri)

    @staticmethod
    def create(root: str | Path) -> Corpus:
        """Open a corpus, or create one in a new or empty folder.

        Raises UserError for another version, a folder with other files, missing access rights, or a path that
        tables cannot have.
        """
        path = local_folder(root, "the corpus").absolute()
        check_table_path(path)
        marker = path / "corpus.json"
        if marker.exists():
            return Corpus.open(path)
        if path.exists() and not path.is_dir():
            raise UserError("the corpus path is a file", where=path, hint="name a folder")
        if path.is_dir() and any(entry.name != MARKER_PART for entry in path.iterdir()):
            raise UserError(
                "the folder is not empty and is not a corpus", where=path, hint="name a new or empty folder"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write_marker(path)
        except OSError as error:
            raise UserError(
                f"the corpus cannot be written: {error.strerror}",
                where=path,
                hint="check rights and space",
            ) from error
        return Corpus(path)

    @staticmethod
    def open(root: str | Path) -> Corpus:
        """Open an existing corpus.

        Raises UserError if there is none, it has another version, or tables cannot have its path.
        """
        path = local_folder(root, "the corpus").absolute()
        check_table_path(path)
        marker = path / "corpus.json"
        if not marker.is_file():
            command = shlex.join(["uniavgen", "ingest", "VIDEOS", "--corpus", str(root)])
            raise UserError("no corpus here", where=path, hint=f"create one: {printable(command)}")
        try:
            version = json.loads(marker.read_text())["corpus_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                "corpus.json is damaged", where=marker, hint="restore it or ingest again"
            ) from error
        corpus = Corpus(path)
        corpus._wait_for_rewrite()
        if version in (1, 2):
            with corpus.writing():
                _add_columns(path)
                _write_marker(path)
        elif version != CORPUS_VERSION:
            what = f"the corpus has version {version}, this program reads {CORPUS_VERSION}"
            hint = "use the matching release of uniavgen, or ingest into a new folder"
            raise UserError(what, where=path, hint=hint, kind="wrong-version")
        return corpus

    def upsert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Commit rows in one transaction and replace those with the same key; returns the number of rows."""
        import pyarrow as pa

        data = pa.Table.from_pylist([dict(row) for row in rows], schema=schema(table))
        if not len(data):
            return 0
        with self.writing():
            if not self._is_table(table):
                return self._write(table, data, "append")
            same = f"t.{KEYS[table]} = s.{KEYS[table]}"
            merge = _opened(self.root / table).merge(data, predicate=same, source_alias="s", target_alias="t")
            merge.when_matched_update_all().when_not_matched_insert_all().execute()
        return len(data)

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Commit rows with new keys in one transaction, at a cost independent of the table; returns their
        number."""
        import pyarrow as pa

        data = pa.Table.from_pylist([dict(row) for row in rows], schema=schema(table))
        return self._write(table, data, "append") if len(data) else 0

    def replace(self, table: str, data: pa.Table) -> None:
        """Replace the content of a table in one transaction."""
        self._write(table, data.cast(schema(table)), "overwrite")

    def _write(self, table: str, data: pa.Table, mode: Literal["append", "overwrite"]) -> int:
        from deltalake import write_deltalake

        with self.writing():
            new = None if self._is_table(table) else TABLE_CONFIGURATION
            write_deltalake(table_uri(self.root / table), data, mode=mode, configuration=new)
        return len(data)

    def compact(self, table: str, files: int) -> None:
        """Merge the files of a table if it has more than `files`, and remove old merged ones."""
        with self.writing():
            if self._is_table(table) and len((delta := _opened(self.root / table)).file_uris()) > files:
                delta.optimize.compact()
                delta.vacuum(VACUUM_AFTER_HOURS, dry_run=False, enforce_retention_duration=False)

    def remove(self, table: str, keys: Iterable[str]) -> None:
        """Delete the rows with these keys in one transaction; unknown keys are ignored."""
        listed = ", ".join("'" + key.replace("'", "''") + "'" for key in keys)
        with self.writing():
            if listed and self._is_table(table):
                _opened(self.root / table).delete(f"{KEYS[table]} IN ({listed})")

    def read(
        self, table: str, columns: list[str] | None = None, only: tuple[str, Sequence[str]] | None = None
    ) -> pa.Table:
        """Read a table, or some columns, as Arrow; empty with the right schema if it was never written.

        `only` is a column and its allowed values: other rows are not loaded.
        """
        import pyarrow as pa
        from deltalake import QueryBuilder

        path = self.root / table
        if not self._is_table(table):
            empty = schema(table).empty_table()
            return empty.select(columns) if columns else empty
        if only is None:
            return _opened(path).to_pyarrow_table(columns=columns)
        # pyarrow's filters fail on the string views that a merge writes; the engine of deltalake reads them
        listed = ", ".join("'" + value.replace("'", "''") + "'" for value in only[1]) or "NULL"
        wanted = ", ".join(f'"{name}"' for name in columns or schema(table).names)
        sql = f"SELECT {wanted} FROM here WHERE {only[0]} IN ({listed})"
        found = pa.table(QueryBuilder().register("here", _opened(path)).execute(sql).read_all())
        return found.cast(pa.schema([schema(table).field(name) for name in found.column_names]))

    def connect(self, tables: Iterable[str] = KEYS) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection in memory with a view of each table under its name. The caller closes it."""
        import duckdb

        connection = duckdb.connect()
        for name in tables:
            self._create_view(connection, name)
        return connection

    def query(self, sql: str, **tables: pa.Table) -> pa.Table:
        """Run SQL on the corpus tables and on any Arrow `tables`, each under its name."""
        named = [name for name in KEYS if name not in tables and name in sql]
        with self.connect(named) as connection:
            for name, table in tables.items():
                connection.register(name, table)
            return connection.sql(sql).to_arrow_table()

    def batches(self, sql: str, rows: int = 50_000) -> Iterator[pa.Table]:
        """Yield the result of `query` in batches of about `rows` rows, for results larger than memory."""
        import pyarrow as pa

        with self.connect([name for name in KEYS if name in sql]) as connection:
            for batch in connection.sql(sql).to_arrow_reader(rows):
                yield pa.Table.from_batches([batch])

    def _create_view(self, connection: Any, table: str) -> None:
        """Create a DuckDB view of a table, of which only the columns and rows of a query are read."""
        folder = self.root / table
        files = _opened(folder).file_uris() if self._is_table(table) else []
        connection.register(
            f"no_{table}", schema(table).empty_table()
        )  # provides types, and columns that no file has yet
        patterns = [exact_pattern(table_file(folder, file)) for file in files]
        listed = ", ".join("'" + pattern.replace("'", "''") + "'" for pattern in patterns)
        found = (
            f"SELECT * FROM read_parquet([{listed}], union_by_name=true) UNION ALL BY NAME " if files else ""
        )
        connection.execute(f"CREATE VIEW {table} AS {found} SELECT * FROM no_{table}")

    def versions(self, tables: Iterable[str] = KEYS) -> dict[str, int]:
        """Delta version of each table; -1 if it was never written."""
        there = {name: self._is_table(name) for name in tables}
        return {
            name: _opened(self.root / name, files=False).version() if written else -1
            for name, written in there.items()
        }

    def media_path(self, clip: str, extension: str) -> Path:
        """Path of a clip's file; `extension` is `mp4`, `flac` or `face.npz`."""
        return self.root / "media" / clip[:2] / f"{clip}.{extension}"


def _opened(folder: Path, files: bool = True) -> DeltaTable:
    """Open an existing table. Raises UserError of kind `unreadable-table`, for example for a newer format."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        return DeltaTable(table_uri(folder), without_files=not files)
    except DeltaError as error:
        what = f"the table cannot be opened, it may be damaged or have a newer version: {error}"
        hint = "use the matching release of uniavgen, or restore it"
        raise UserError(what, where=folder, hint=hint, kind="unreadable-table") from error


def _write_marker(root: Path) -> None:
    part = root / MARKER_PART
    part.write_text(json.dumps({"corpus_version": CORPUS_VERSION}) + "\n")
    os.replace(part, root / "corpus.json")


def _add_columns(root: Path) -> None:
    """Add missing columns to tables that an older release wrote, in one transaction each."""
    from deltalake import DeltaTable
    from deltalake import Schema as DeltaSchema

    for name in KEYS:
        uri = table_uri(root / name)
        if DeltaTable.is_deltatable(uri):
            table = DeltaTable(uri)
            known = {field.name for field in table.schema().fields}
            missing = [
                field for field in DeltaSchema.from_arrow(schema(name)).fields if field.name not in known
            ]
            if missing:
                table.alter.add_columns(missing)
