"""URIs of videos as the corpus tables store them, local paths and URLs, and what an argument lists."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote_to_bytes

from uniavgen.shards.errors import UserError

MEDIA_EXTENSIONS = frozenset(
    [
        *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
        *(".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ]
)
"""Extensions of the files that are taken from a folder. A file named explicitly is always taken."""

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


@dataclass
class Listing:
    """What one argument names: videos, `.txt` list files, and other files with the reason why they are not
    taken.
    """

    entries: list[Entry] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)


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


def is_video_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in MEDIA_EXTENSIONS


def no_videos(files: int, where: str) -> UserError:
    """The error for a folder with `files` files of which none is a video by its name."""
    what = f"none of the {files} files in the folder is a video" if files else "the folder is empty"
    return UserError(
        what, where=where, hint=f"known extensions: {' '.join(sorted(MEDIA_EXTENSIONS))}", kind="no-sources"
    )
