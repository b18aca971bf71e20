"""One sample's bytes out of a tar, opened with care: nothing but plain files whose names are safe, and no pickles.

In: the span of a tar that holds one sample. Out: its members by extension.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from pathlib import Path
from typing import Any

from uniavgen.shards.errors import UserError
from uniavgen.shards.tar.index import ShardIndex

_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+$")
_RUNNABLE = {"pkl", "pickle", "pyd", "pyc", "pt", "pth", "ckpt", "joblib", "dill"}
"""Extensions whose usual readers run code that is in the file."""


def member_problem(member: tarfile.TarInfo) -> str:
    """Why a member must not be opened, empty where it may be."""
    name = ascii(member.name)[:80]
    if not member.isreg() or member.issparse():
        return f"member {name} is no plain file but a {_kind(member)}"
    if not _NAME.match(member.name):
        return f"member {name} has an unsafe name"
    if member.name.rpartition(".")[2].lower() in _RUNNABLE:
        return f"member {name} is a pickle"
    return ""


def _kind(member: tarfile.TarInfo) -> str:
    kinds = {"link": member.islnk() or member.issym(), "folder": member.isdir(), "device": member.isdev()}
    return next((kind for kind, is_it in kinds.items() if is_it), "sparse or unknown kind of entry")


def read_members(span: bytes, key: str, where: object = "") -> dict[str, bytes]:
    """The members of sample `key` by extension (`{"mp4": ..., "face.npz": ...}`).

    Raises UserError of kind `damaged-sample` where the span is no tar, holds anything but that sample, or a member is
    refused.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(span), mode="r:") as tar:
            for member in tar:
                problem = member_problem(member)
                owner, _, extension = member.name.partition(".")
                if not problem and owner != key:
                    problem = f"member {member.name} is of another sample"
                if not problem and extension in members:
                    problem = f"member {member.name} stands twice"
                if not problem and member.offset_data + member.size > len(span):
                    problem = f"member {member.name} is cut off"
                if problem:
                    raise UserError(f"sample {key} is refused: {problem}", where=where, kind="damaged-sample")
                members[extension] = span[member.offset_data : member.offset_data + member.size]
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(
            f"sample {key} cannot be read: {error}", where=where, kind="damaged-sample"
        ) from error
    return members


def size_and_digest(path: Path) -> tuple[int, str]:
    """Bytes of a file, and their SHA-256."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def read_span(file: Any, index: ShardIndex, place: int) -> bytes:
    """The bytes of one sample of an open tar."""
    file.seek(int(index.offset[place]))
    data: bytes = file.read(int(index.length[place]))
    return data
