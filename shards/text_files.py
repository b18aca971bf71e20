"""Text that people wrote, as editors and shells of all systems save it: UTF-8 or UTF-16, with or without a
byte order mark.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from uniavgen.shards.errors import UserError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(data: bytes, errors: str = "strict") -> str:
    """Decode the bytes of a text file. `errors` treats bytes that are not of its encoding.

    The byte order mark names the encoding. Without one it is UTF-16 if every second byte of the first line is
    zero, else UTF-8. Raises UnicodeDecodeError.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            # a surrogate pair that is cut in two has no bytes to escape
            lenient = errors if encoding == "utf-8" or errors == "strict" else "replace"
            return data[len(mark) :].decode(encoding, lenient)
    if len(data) >= 4 and not data[1] and not data[3] and data[0] and data[2]:
        return data.decode("utf-16-le", errors if errors == "strict" else "replace")
    if len(data) >= 4 and not data[0] and not data[2] and data[1] and data[3]:
        return data.decode("utf-16-be", errors if errors == "strict" else "replace")
    return data.decode("utf-8", errors)


def read_text(path: Path, what: str) -> str:
    """The text of a file that a user wrote; `what` names it in errors, as "the policy".

    Raises UserError (unreadable) if it cannot be read, or is neither UTF-8 nor UTF-16.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{what} cannot be read: {error.strerror}",
            where=path,
            hint="check the file and its permissions",
            kind="unreadable",
        ) from error
    try:
        return decode_text(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{what} is not UTF-8 (byte 0x{data[min(error.start, len(data) - 1)]:02x})",
            where=f"{path}:{line}",
            hint="save the file as UTF-8",
            kind="unreadable",
        ) from error
