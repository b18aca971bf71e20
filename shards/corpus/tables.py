"""The corpus folder: transactional tables (Delta Lake), queried with DuckDB, and where media files stand.

    corpus.json              schema version
    sources/ clips/ failures/ decisions/ captions/     Delta tables; a row is the proof that its work is done
    media/<2 hex>/<clip_id>.{mp4,flac,face.npz}
    shards/  report/         made from the tables

Ids come from content, so the same input gives the same rows; `upsert` makes writing them twice harmless. Runs may write at
once: each transaction waits for the one before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.errors import UserError

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa
    from deltalake import DeltaTable
    from filelock import BaseFileLock

MARKER_PART = ".corpus.json.part"
CORPUS_VERSION = 2
"""1: until 0.1; 2 adds columns only, and a corpus of version 1 gains them, empty, when it is opened."""


def _schemas() -> dict[str, pa.Schema]:
    import pyarrow as pa

    text, number, flag, count = pa.string(), pa.float64(), pa.bool_(), pa.int64()
    word = pa.struct([("text", text), ("start_s", number), ("end_s", number), ("score", number)])
    span = pa.struct([("label", text), ("start_s", number), ("end_s", number)])
    source = [("source_id", text), ("uri", text), ("duration_s", number), ("width", count), ("height", count)]
    source += [
        ("fps", number),
        ("video_codec", text),
        ("audio_codec", text),
        ("has_audio", flag),
        ("error", text),
    ]
    spoken = pa.struct([*word, ("speaker", text)])
    track = pa.struct([("track", count), ("start_s", number), ("end_s", number), ("height_px", number)])
    source += [
        ("turns", pa.list_(span)),
        ("shots", pa.list_(span)),
        ("step_seconds", pa.map_(text, number)),
        ("digest", text),
    ]
    source += [("words", pa.list_(spoken)), ("tracks", pa.list_(track)), ("bytes", count), ("stamp", text)]
    clip = [("clip_id", text), ("source_id", text), ("start_s", number), ("end_s", number), ("speaker", text)]
    clip += [
        ("voice", pa.list_(pa.float32())),
        ("transcript", text),
        ("words", pa.list_(word)),
        ("language", text),
    ]
    clip += [("versions", pa.map_(text, text))] + [(name, number) for name in SIGNALS]
    clip += [("video_hash", pa.list_(count)), ("sound_hash", pa.list_(count)), ("text_hash", count)]
    clip += [("face", pa.list_(pa.float32())), ("sync_curve", pa.list_(pa.float32()))]
    failure = [("uri", text), ("stage", text), ("error_type", text), ("message", text), ("attempts", count)]
    failure += [("source_id", text), ("digest", text), ("stamp", text)]
    decision = [("clip_id", text), ("kept", flag), ("reason", text), ("failed_rules", pa.list_(text))]
    decision += [("policy_digest", text), ("split", text)]
    caption = [
        ("caption_id", text),
        ("clip_id", text),
        ("caption", text),
        ("model", text),
        ("prompt_digest", text),
    ]
    caption += [("tokens", count), ("seconds", number)]
    return {
        "sources": pa.schema(source),
        "clips": pa.schema(clip),
        "failures": pa.schema(failure),
        "decisions": pa.schema(decision),
        "captions": pa.schema(caption),
    }


def schema(table: str) -> pa.Schema:
    """Columns and types of a table, by name."""
    return _schemas()[table]


KEYS = {
    "sources": "source_id",
    "clips": "clip_id",
    "failures": "uri",
    "decisions": "clip_id",
    "captions": "caption_id",
}
"""The tables, each by the column that names its rows."""


VACUUM_AFTER_HOURS = 1
"""How long files that no version of today needs stay for those who read (our choice)."""

TABLE_CONFIGURATION = {"delta.dataSkippingNumIndexedCols": "2"}
"""Of a new table: its log has statistics of two columns, ids. Those of sixty would fill log and memory with every commit."""


def clip_id(source_id: str, start_s: float, end_s: float) -> str:
    """Identity of a clip: a hash of its source and its milliseconds, so that a second run names it alike."""
    span = f"{source_id}:{round(start_s * 1000)}:{round(end_s * 1000)}"
    return hashlib.sha256(span.encode()).hexdigest()[:20]


class Corpus:
    """The tables and media of one corpus folder. Reading a table that was never written gives an empty one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def _lock(self) -> BaseFileLock:
        from filelock import FileLock

        return FileLock(self.root / ".tables.lock", is_singleton=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone with the tables: other runs' transactions wait; this object's own, inside, do not. Finishes first what a run
        that was killed between the two renames of `shards.erasure.rewrite` left."""
        with self._lock:
            for name in KEYS:
                fresh, gone = self.root / f".{name}.fresh", self.root / f".{name}.gone"
                if gone.exists():
                    if fresh.exists() and not (self.root / name).exists():
                        os.replace(fresh, self.root / name)
                    shutil.rmtree(gone)
            yield

    def _settle(self) -> None:
        """Wait for a table that is being written anew, which stands nowhere for an instant."""
        if any((self.root / f".{name}.gone").exists() for name in KEYS):
            with self.writing():
                pass

    def _is_table(self, table: str) -> bool:
        """Whether a table was ever written."""
        from deltalake import DeltaTable

        path = str(self.root / table)
        if not DeltaTable.is_deltatable(path):
            self._settle()
        return DeltaTable.is_deltatable(path)

    @staticmethod
    def create(root: str | Path) -> Corpus:
        """Open a corpus, making the folder where there is none. Raises UserError for another version or no rights."""
        path = Path(root).absolute()
        marker = path / "corpus.json"
        if marker.exists():
            return Corpus.open(path)
        if path.exists() and not path.is_dir():
            raise UserError("the corpus path is a file", where=path, hint="name a folder")
        if path.is_dir() and any(other.name != MARKER_PART for other in path.iterdir()):
            raise UserError(
                "the folder is not empty and is no corpus", where=path, hint="name a new or empty folder"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            _write_marker(path)
        except OSError as error:
            raise UserError(
                f"the corpus cannot be written: {error.strerror}", where=path, hint="check rights and space"
            ) from error
        return Corpus(path)

    @staticmethod
    def open(root: str | Path) -> Corpus:
        """Open a corpus that exists. Raises UserError where there is none or it is from another version."""
        path = Path(root).absolute()
        marker = path / "corpus.json"
        if not marker.is_file():
            raise UserError(
                "no corpus here", where=path, hint=f"make one: uniavgen ingest VIDEOS --corpus {root}"
            )
        try:
            version = json.loads(marker.read_text())["corpus_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                "corpus.json is damaged", where=marker, hint="restore it or ingest anew"
            ) from error
        corpus = Corpus(path)
        corpus._settle()
        if version == 1:
            with corpus.writing():
                _add_columns(path)
                _write_marker(path)
        elif version != CORPUS_VERSION:
            what = f"the corpus has version {version}, this program reads {CORPUS_VERSION}"
            hint = "use the matching release of uniavgen, or ingest into a new folder"
            raise UserError(what, where=path, hint=hint, kind="wrong-version")
        return corpus

    def upsert(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Commit rows in one transaction, replacing those with the same key; returns how many were given."""
        import pyarrow as pa

        data = pa.Table.from_pylist([dict(row) for row in rows], schema=_schemas()[table])
        if not len(data):
            return 0
        with self.writing():
            if not self._is_table(table):
                return self._write(table, data, "append")
            same = f"t.{KEYS[table]} = s.{KEYS[table]}"
            merge = _opened(str(self.root / table)).merge(
                data, predicate=same, source_alias="s", target_alias="t"
            )
            merge.when_matched_update_all().when_not_matched_insert_all().execute()
        return len(data)

    def append(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Commit rows whose keys are known to be new, in one transaction; returns how many. Costs the same in any table."""
        import pyarrow as pa

        data = pa.Table.from_pylist([dict(row) for row in rows], schema=_schemas()[table])
        return self._write(table, data, "append") if len(data) else 0

    def replace(self, table: str, data: pa.Table) -> None:
        """Commit `data` as the whole content of a table, in one transaction."""
        self._write(table, data.cast(_schemas()[table]), "overwrite")

    def _write(self, table: str, data: pa.Table, mode: Literal["append", "overwrite"]) -> int:
        from deltalake import write_deltalake

        with self.writing():
            new = None if self._is_table(table) else TABLE_CONFIGURATION
            write_deltalake(str(self.root / table), data, mode=mode, configuration=new)
        return len(data)

    def compact(self, table: str, files: int) -> None:
        """Put the files of a table together, once it has more than `files` of them; those long put together go."""
        with self.writing():
            if self._is_table(table) and len((found := _opened(str(self.root / table))).file_uris()) > files:
                found.optimize.compact()
                found.vacuum(VACUUM_AFTER_HOURS, dry_run=False, enforce_retention_duration=False)

    def remove(self, table: str, keys: Iterable[str]) -> None:
        """Delete the rows with these keys, in one transaction; keys that are not there are ignored."""
        listed = ", ".join("'" + key.replace("'", "''") + "'" for key in keys)
        with self.writing():
            if listed and self._is_table(table):
                _opened(str(self.root / table)).delete(f"{KEYS[table]} IN ({listed})")

    def read(
        self, table: str, columns: list[str] | None = None, only: tuple[str, Sequence[str]] | None = None
    ) -> pa.Table:
        """A whole table (or some columns of it) as Arrow; empty, with the right schema, where none was written.

        `only` is a column and the values that it may have: other rows are not loaded.
        """
        import pyarrow as pa
        from deltalake import QueryBuilder

        schema = _schemas()[table]
        path = str(self.root / table)
        if not self._is_table(table):
            empty = schema.empty_table()
            return empty.select(columns) if columns else empty
        if only is None:
            return _opened(path).to_pyarrow_table(columns=columns)
        # pyarrow's filters fail on the string views that a merge leaves in the files; the table's own engine reads them
        listed = ", ".join("'" + value.replace("'", "''") + "'" for value in only[1]) or "NULL"
        wanted = ", ".join(f'"{name}"' for name in columns or schema.names)
        sql = f"SELECT {wanted} FROM here WHERE {only[0]} IN ({listed})"
        found = pa.table(QueryBuilder().register("here", _opened(path)).execute(sql).read_all())
        return found.cast(pa.schema([schema.field(name) for name in found.column_names]))

    def connect(self, tables: Iterable[str] = KEYS) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection in memory with a view of each table under its name. The caller closes it."""
        import duckdb

        connection = duckdb.connect()
        for name in tables:
            self._offer(connection, name)
        return connection

    def query(self, sql: str, **tables: pa.Table) -> pa.Table:
        """Run SQL over the corpus tables (`sources`, `clips`, `failures`, `decisions`) and any Arrow `tables` given."""
        named = [name for name in KEYS if name not in tables and name in sql]
        with self.connect(named) as connection:
            for name, table in tables.items():
                connection.register(name, table)
            return connection.sql(sql).to_arrow_table()

    def batches(self, sql: str, rows: int = 50_000) -> Iterator[pa.Table]:
        """What `query` gives, in pieces of some `rows`: for tables that need not fit into memory."""
        import pyarrow as pa

        with self.connect([name for name in KEYS if name in sql]) as connection:
            for batch in connection.sql(sql).to_arrow_reader(rows):
                yield pa.Table.from_batches([batch])

    def _offer(self, connection: Any, table: str) -> None:
        """Give DuckDB a table under its name: it reads the columns and rows that a query asks for, and no others."""
        files = _opened(str(self.root / table)).file_uris() if self._is_table(table) else []
        connection.register(
            f"no_{table}", _schemas()[table].empty_table()
        )  # types, and columns that no file has yet
        listed = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
        found = (
            f"SELECT * FROM read_parquet([{listed}], union_by_name=true) UNION ALL BY NAME " if files else ""
        )
        connection.execute(f"CREATE VIEW {table} AS {found} SELECT * FROM no_{table}")

    def versions(self, tables: Iterable[str] = KEYS) -> dict[str, int]:
        """Version of every table, or of some; -1 where it was never written."""
        there = {name: str(self.root / name) if self._is_table(name) else "" for name in tables}
        return {name: _opened(path, files=False).version() if path else -1 for name, path in there.items()}

    def media_path(self, clip: str, extension: str) -> Path:
        """Where a clip's file stands: `extension` is `mp4`, `flac` or `face.npz`."""
        return self.root / "media" / clip[:2] / f"{clip}.{extension}"


def _opened(path: str, files: bool = True) -> DeltaTable:
    """A table that is there. Raises UserError of kind `unreadable-table`, as for one that a newer program wrote."""
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        return DeltaTable(path, without_files=not files)
    except DeltaError as error:
        what = f"the table cannot be opened, it may be damaged or of a newer version: {error}"
        hint = "use the matching release of uniavgen, or restore it"
        raise UserError(what, where=path, hint=hint, kind="unreadable-table") from error


def _write_marker(root: Path) -> None:
    part = root / MARKER_PART
    part.write_text(json.dumps({"corpus_version": CORPUS_VERSION}) + "\n")
    os.replace(part, root / "corpus.json")


def _add_columns(root: Path) -> None:
    """Give tables written by an older version the columns that they lack, in one transaction each."""
    from deltalake import DeltaTable
    from deltalake import Schema as DeltaSchema

    for name, wanted in _schemas().items():
        path = str(root / name)
        if DeltaTable.is_deltatable(path):
            table = DeltaTable(path)
            known = {field.name for field in table.schema().fields}
            missing = [field for field in DeltaSchema.from_arrow(wanted).fields if field.name not in known]
            if missing:
                table.alter.add_columns(missing)
