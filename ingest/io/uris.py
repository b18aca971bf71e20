"""URIs of videos as the corpus tables store them: local paths and URLs, and the way back to a path."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

_PROTOCOL = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One video to ingest.

    An equal `uri` with an equal `stamp` has the same content; a stamp "" says nothing.
    """

    uri: str
    stamp: str = ""
    bytes: int | None = None
    """None where the store does not tell, or where there is no such file (reading it then raises)."""


def uri_of(path: str) -> str:
    """The URI of a local path: absolute; a name that is not UTF-8 becomes a percent-encoded file:// URI (RFC
    8089).
    """
    path = os.path.abspath(path)
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote(os.fsencode(path))
    return path


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


def printable(path: str) -> str:
    """A path for messages and tables: bytes that are not UTF-8 are escaped with backslashes."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
