"""Read the members of a sample from a tar. Only plain files with safe names are opened, and no pickles."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from pathlib import Path
from typing import IO

from uniavgen.shards.errors import UserError
from uniavgen.shards.tar.index import ShardIndex

_NAME = re.compile(r"^[A-Za-z0-9_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)+$")
_RUNNABLE = {"pkl", "pickle", "pyd", "pyc", "pt", "pth", "ckpt", "joblib", "dill"}
"""Extensions of formats whose usual readers execute code from the file."""


def member_problem(member: tarfile.TarInfo) -> str:
    """The reason not to open a member; empty if it is safe."""
    name = ascii(member.name)[:80]
    if not member.isreg() or member.issparse():
        return f"member {name} is not a plain file but a {_kind(member)}"
    if not _NAME.match(member.name):
        return f"member {name} has an unsafe name"
    if member.name.rpartition(".")[2].lower() in _RUNNABLE:
        return f"member {name} is a pickle"
    return ""


def _kind(member: tarfile.TarInfo) -> str:
    kinds = {"link": member.islnk() or member.issym(), "folder": member.isdir(), "device": member.isdev()}
    return next((kind for kind, applies in kinds.items() if applies), "sparse or unknown kind of entry")


def read_members(span: bytes, key: str, where: object = "") -> dict[str, bytes]:
    """Read the members of sample `key` from its bytes of the tar: {"mp4": ..., "face.npz": ...}.

    Raises UserError of kind `damaged-sample` if the bytes are not a tar, hold another sample, or have a
    member that is not safe to open.
    """
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(span), mode="r:") as tar:
            for member in tar:
                problem = member_problem(member)
                owner, _, extension = member.name.partition(".")
                if not problem and owner != key:
                    problem = f"member {member.name} belongs to another sample"
                if not problem and extension in members:
                    problem = f"member {member.name} occurs twice"
                if not problem and member.offset_data + member.size > len(span):
                    problem = f"member {member.name} is truncated"
                if problem:
                    raise UserError(f"sample {key} is refused: {problem}", where=where, kind="damaged-sample")
                members[extension] = span[member.offset_data : member.offset_data + member.size]
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise UserError(
            f"sample {key} cannot be read: {error}", where=where, kind="damaged-sample"
        ) from error
    return members


def size_and_digest(path: Path) -> tuple[int, str]:
    """Size of a file in bytes, and its SHA-256."""
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def read_span(tar: IO[bytes], index: ShardIndex, row: int) -> bytes:
    """Read the bytes of the sample in row `row` of the index from an open tar."""
    tar.seek(int(index.offset[row]))
    data: bytes = tar.read(int(index.length[row]))
    return data
