"""List files: one video a line, whatever the editor, shell or system that wrote them."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from uniavgen.ingest.io.local_files import local_entry
from uniavgen.ingest.io.uris import Entry
from uniavgen.shards.errors import UserError, printable
from uniavgen.shards.text_files import decode_text
from uniavgen.shards.uris import local_path

MAX_LINE_BYTES = 4096
"""Longest path of Linux (PATH_MAX)."""
MAX_LIST_BYTES = 2**28
"""A larger file is no list. Heuristic: two million paths of 128 bytes."""


@dataclass(frozen=True)
class ListLine:
    """A line of a list file. `text` may hold any bytes (surrogateescape), as a file's name on disk does."""

    number: int
    text: str

    @property
    def problem(self) -> str:
        """Why the line can name no file; "" if it can."""
        if "\0" in self.text:
            return "the line has a zero byte"
        if len(self.text.encode("utf-8", "surrogateescape")) > MAX_LINE_BYTES:
            return f"the line is longer than {MAX_LINE_BYTES} bytes"
        return ""

    def entry(self, uri: str, where: str) -> Entry:
        """A source that is known to fail, with the line in its message."""
        return Entry(uri, problem=self.problem, origin=self.origin(where))

    def origin(self, where: str) -> str:
        return f"line {self.number} of {printable(where)}"


def parse_list(data: bytes) -> list[ListLine]:
    """The lines of a list that are not blank. UTF-16 and byte order marks are decoded, other bytes kept."""
    text = decode_text(data, "surrogateescape")
    if "\n" not in text:  # of an old Macintosh, if it has several lines
        text = text.replace("\r", "\n")
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [ListLine(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def read_list(path: str) -> list[ListLine]:
    """The lines of a local list file. Raises UserError (no-sources)."""
    try:
        if os.path.getsize(path) > MAX_LIST_BYTES:
            raise UserError(
                f"a list of videos is at most {MAX_LIST_BYTES // 2**20} MiB large",
                where=printable(path),
                hint="a video needs another extension than .txt",
                kind="no-sources",
            )
        return parse_list(Path(path).read_bytes())
    except OSError as error:
        raise UserError(
            f"the list cannot be read: {error.strerror}",
            where=printable(path),
            hint="check the file and its permissions",
            kind="no-sources",
        ) from error


def find_listed(line: ListLine, folder: str) -> str | None:
    """The file or folder that a line names, relative to `folder`; None if there is none.

    The line as it is comes first: a name may begin with #, end with a space, or look like a URL.
    """
    if line.problem:
        return None
    for name in _spellings(line.text):
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            return path
    return None


def local_listed(line: ListLine, folder: str, where: str) -> Entry:
    """The entry of a line that names a local file. A file that does not exist is an entry that will fail."""
    if line.problem:
        # the file of the list, not of the video, is what can be named
        return line.entry(f"{printable(where)}: line {line.number}", where)
    path = find_listed(line, folder)
    if path is None:
        stripped = line.text.strip()
        path = os.path.join(folder, local_path(stripped) or stripped)
    entry = local_entry(path)
    return Entry(entry.uri, entry.stamp, entry.bytes, origin=line.origin(where))


def is_comment(line: ListLine, folder: str | None) -> bool:
    """Whether a line is a comment: it starts with # and no file in `folder` has that name."""
    return line.text.lstrip().startswith("#") and (folder is None or find_listed(line, folder) is None)


def _spellings(text: str) -> Iterator[str]:
    """The line as it is, without spaces, as a file:// URI, from Latin-1, with composed and decomposed
    accents."""
    stripped = text.strip()
    yield text
    yield stripped
    path = local_path(stripped)
    if path is not None and "\0" not in path:
        yield path
    if any("\udc80" <= character <= "\udcff" for character in stripped):
        yield os.fsencode(stripped).decode("latin-1")
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, stripped)
