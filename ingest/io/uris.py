"""Names of videos: local paths and URLs, as tables write them, and what a store says of a file.

Goes in: a path or a URL. Comes out: its `uri` (UTF-8 for any name on disk), the way back, and `Entry`s of local and remote
files. Remote means anything that fsspec speaks; http(s) is apart in `ingest.web`, on a shorter lead.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from uniavgen.shards.errors import UserError

WEB = ("http", "https")
"""Protocols that are refused unless `sources.allow_http` is set."""

_PROTOCOL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_STAMPS = ("etag", "md5", "contentmd5", "lastmodified", "mtime", "updated", "modified", "created")
"""What stores call the fact that changes with a file's content, the best first (compared in lower case, letters only)."""


@dataclass(frozen=True)
class Entry:
    """One video to be ingested. An equal `uri` with an equal `stamp` is the same content; "" says nothing of it."""

    uri: str
    stamp: str = ""
    bytes: int | None = None
    """None where the store does not tell, or where there is no such file (reading it then says so)."""


def uri_of(path: str) -> str:
    """A local path as tables write it: absolute; a name that is no UTF-8 as a percent-encoded file:// URI (RFC 8089)."""
    path = os.path.abspath(path)
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


def local_path(uri: str) -> str | None:
    """The path behind a uri, for the operating system; None if it is remote. The inverse of `uri_of`."""
    if uri.startswith("file://"):
        return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    return None if protocol_of(uri) else uri


def protocol_of(uri: str) -> str:
    """`s3`, `http`, ... in lower case; "" for a plain path."""
    found = _PROTOCOL.match(uri)
    return found[1].lower() if found else ""


def local_entry(path: str) -> Entry:
    """A local file with its size and time of change; without them if it cannot be looked at."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return Entry(uri_of(path) if "\0" not in path else path)
    return Entry(uri_of(path), f"{facts.st_size}-{facts.st_mtime_ns}", facts.st_size)


def check_regular(path: str) -> os.stat_result:
    """Facts of a regular file with something in it. Raises UserError (unreadable, not-a-file, empty) for all else."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot be read: {why}", where=printable(path), hint="check the file", kind="unreadable"
        ) from error
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(
            f"it is a {kind_of_file(facts.st_mode)}, not a file", where=printable(path), kind="not-a-file"
        )
    if not facts.st_size:
        raise UserError(
            "the file is empty (zero bytes)", where=printable(path), hint="fetch it again", kind="empty"
        )
    return facts


def kind_of_file(mode: int) -> str:
    """What a `st_mode` stands for, in a word."""
    kinds = (
        (stat.S_ISDIR, "folder"),
        (stat.S_ISFIFO, "pipe"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISREG, "file"),
    )
    return next((name for test, name in kinds if test(mode)), "device")


def printable(path: str) -> str:
    """A path for messages and tables: bytes that are no UTF-8 as in a uri."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def filesystem(uri: str) -> tuple[Any, str]:
    """fsspec's file system for a URL and the path in it. Raises UserError for chains and for protocols unknown here."""
    import fsspec

    if "::" in uri:
        raise UserError("a chain of URLs is not read", where=uri, hint="name the file itself", kind="bad-url")
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{protocol_of(uri)}:// cannot be read here: {error}", where=uri, kind="bad-url"
        ) from error
    return found


def remote_entry(store: Any, facts: dict[str, Any]) -> Entry:
    """An entry from what `store.info` or a detailed listing says."""
    known = {re.sub("[^a-z]", "", name.lower()): value for name, value in facts.items()}
    stamp = next((str(known[name]) for name in _STAMPS if known.get(name)), "")
    size = facts.get("size")
    return Entry(store.unstrip_protocol(facts["name"]), f"{size}-{stamp}" if stamp else "", size)


def remote_files(uri: str, listing: str) -> list[Entry]:
    """Files of a remote folder (`listing` "find") or pattern ("glob"), or the file itself ("info"; none if it is a folder).
    Raises UserError where the store cannot be reached or has no such thing (`unreachable`, `unreadable`)."""
    store, path = filesystem(uri)
    try:
        if listing == "info":
            found: Iterable[dict[str, Any]] = [store.info(path)]
        else:
            found = getattr(store, listing)(path, detail=True).values()
        return [remote_entry(store, facts) for facts in found if facts.get("type") != "directory"]
    except FileNotFoundError as error:
        raise UserError("no such file", where=uri, hint="check the address", kind="unreadable") from error
    except Exception as error:  # every store has its own errors
        raise UserError(f"the store says: {error}"[:300], where=uri, kind="unreachable") from error
