"""Paths and URIs are two things: a path is any bytes and is never decoded, a URI is percent-encoded text.

Libraries that take one string for both get what is written here: delta-rs a `file://` URI (`table_uri`),
DuckDB a pattern that matches one file (`exact_pattern`), SQLAlchemy an SQLite URL (`sqlite_uri`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes

from uniavgen.shards.errors import UsageError, UserError, printable

_PROTOCOL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_URL_AS_PATH = re.compile(r"([a-z][a-z0-9+.-]+):/+", re.IGNORECASE)
"""The beginning of a URL, also after `pathlib` has made `s3:/bucket` of `s3://bucket`."""
_TABLES_REFUSE = re.compile(r"[\x00-\x1f\x7f\[\]|^\\]|%[0-9a-fA-F]{2}")
"""What deltalake 1.6 cannot have in the path of a table, whether it is percent-encoded or not: it panics on
the brackets, the bar and the caret, and decodes a backslash or a % with two hex digits a second time."""


def uri_of(path: str) -> str:
    """The URI of a local path as tables store it: the absolute path itself.

    A name that is not UTF-8, or that has a zero byte, becomes a percent-encoded file:// URI (RFC 8089).
    """
    path = path if "\0" in path else os.path.abspath(path)
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return "file://" + quote(path) if "\0" in path else path


def local_path(uri: str) -> str | None:
    """The path of a local URI for the operating system; None if the URI is remote. The inverse of
    `uri_of`.
    """
    protocol = protocol_of(uri)
    if protocol == "file":
        return os.fsdecode(unquote_to_bytes(uri[len("file://") :]))
    return None if protocol else uri


def protocol_of(uri: str) -> str:
    """`s3`, `http`, ... in lower case; "" for a plain path."""
    match = _PROTOCOL.match(uri)
    return match[1].lower() if match else ""


def local_folder(path: str | Path, what: str) -> Path:
    """The path, or that of a file:// URI. `what`: the option or setting that names it.

    Raises UsageError (remote-path) for any other URL: as a path it would name a folder `./s3:`.
    """
    match = _URL_AS_PATH.match(str(path))
    if not match:
        return Path(path)
    rest = str(path)[match.end() :]
    if match[1].lower() == "file":
        return Path(os.fsdecode(b"/" + unquote_to_bytes(rest)))
    raise UsageError(
        f"{what} has to be a local path: {match[1]}:// is not supported here",
        where=f"{match[1]}://{rest}",
        hint="name a folder of a disk that all machines see; `ingest` reads sources from object stores, and "
        "`shard --to` and `train.data.shards` take shards there",
        kind="remote-path",
    )


def check_utf8(path: Path, what: str) -> None:
    """Raise UserError (bad-path) if a path is not UTF-8: tables, JSON and databases could not name it."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"the path of {what} is not UTF-8",
            where=printable(str(path)),
            hint="rename the folder, or name another one",
            kind="bad-path",
        ) from error


def check_table_path(folder: Path) -> None:
    """Raise UserError (bad-path) if tables cannot be in a folder. Links are followed, as deltalake does."""
    check_utf8(folder, "the corpus")
    found = _TABLES_REFUSE.search(os.path.realpath(folder))
    if found:
        raise UserError(
            f'the path of the corpus contains "{printable(found[0])}", which the table library cannot open',
            where=printable(str(folder)),
            hint=r"name a path without [ ] | ^ \, control characters, or % before two hex digits, "
            "or make it a link to such a folder",
            kind="bad-path",
        )


def table_uri(folder: Path) -> str:
    """The URI of a Delta table: deltalake parses every string as a URL, so `%` and `#` must be encoded."""
    return folder.as_uri()


def table_file(folder: Path, uri: str) -> Path:
    """The path of one file of a Delta table without partitions, from its entry in `DeltaTable.file_uris`."""
    return folder / unquote(uri.rpartition("/")[2])


def exact_pattern(path: Path) -> str:
    """The glob pattern that matches a path alone, for DuckDB, which takes every path for a pattern."""
    return re.sub(r"[*?\[]", r"[\g<0>]", str(path))


_SQLITE = ("sqlite:///", "sqlite+pysqlite:///")


def sqlite_uri(path: Path) -> str:
    """The SQLAlchemy URL of an SQLite file: SQLAlchemy decodes it, and a question mark begins its options.

    An encoded path names the driver too: MLflow makes the undecoded folder of every `sqlite:///` URL.
    """
    encoded = str(path).replace("%", "%25").replace("?", "%3F")
    return f"{_SQLITE[encoded != str(path)]}{encoded}"


def absolute_sqlite_uri(uri: str) -> str:
    """The URL with the absolute path of its SQLite file, if it names one by a relative path."""
    path = sqlite_path(uri)
    if path is None or any(uri.startswith(f"{prefix}/") for prefix in _SQLITE):
        return uri
    _, mark, options = uri.partition("?")
    return f"{sqlite_uri(path)}{mark}{options}"


def sqlite_path(uri: str) -> Path | None:
    """The file of an SQLAlchemy URL; None if it is no SQLite file. The inverse of `sqlite_uri`."""
    for prefix in _SQLITE:
        if uri.startswith(prefix):
            return Path(unquote(uri.removeprefix(prefix).partition("?")[0])).absolute()
    return None
