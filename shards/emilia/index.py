"""The index of an Emilia tar: position and filter values of every utterance, from one scan of the tar.

It is stored as `<tar>.emilia.npz` beside a local tar, else in a folder of the run. The scan reads only
headers and jsons, so `digest`, which a resumed run compares, covers them and the size of the tar. The audio
is checked when it is decoded.
"""

from __future__ import annotations

import hashlib
import io
import logging
import tarfile
import zipfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from uniavgen.shards.atomic_files import replace_file
from uniavgen.shards.emilia.sample import meta_from
from uniavgen.shards.errors import UserError
from uniavgen.shards.store import Store
from uniavgen.shards.tar.tar_reader import member_problem

log = logging.getLogger(__name__)

INDEX_VERSION = 1
_COLUMNS = {
    "key": np.bytes_,
    "offset": np.int64,
    "length": np.int64,
    "seconds": np.float64,
    "dnsmos": np.float64,
}
_COLUMNS |= {"speaker": np.bytes_, "language": np.bytes_, "damaged": np.bool_}


class Tar(NamedTuple):
    """A tar in a store."""

    store: Store
    name: str

    @property
    def where(self) -> str:
        return self.store.full_path(self.name)


@dataclass(frozen=True)
class EmiliaIndex:
    """Columns [n] over the samples of a tar, texts in UTF-8. Bytes [offset, offset + length) are a sample.

    `damaged` marks samples with an unusable json; their other columns are empty. `source` is the file
    system's key of the tar (size, modification time or ETag) at the time of the scan.
    """

    key: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    seconds: np.ndarray
    dnsmos: np.ndarray
    speaker: np.ndarray
    language: np.ndarray
    damaged: np.ndarray
    digest: str
    source: str

    def __len__(self) -> int:
        return len(self.key)

    def to_bytes(self) -> bytes:
        columns = {name: getattr(self, name) for name in _COLUMNS}
        out = io.BytesIO()
        np.savez(
            out,
            version=np.int64(INDEX_VERSION),
            digest=np.array(self.digest),
            source=np.array(self.source),
            **columns,
        )
        return out.getvalue()

    @staticmethod
    def from_bytes(data: bytes) -> EmiliaIndex | None:
        """Parse an index; None if the bytes are not a complete index of this version."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                if int(file["version"]) != INDEX_VERSION:
                    return None
                columns = {name: file[name].astype(kind) for name, kind in _COLUMNS.items()}
                return EmiliaIndex(**columns, digest=str(file["digest"]), source=str(file["source"]))
        except (ValueError, KeyError, OSError, EOFError, TypeError, zipfile.BadZipFile):
            return None


def find_tars(patterns: list[str]) -> list[Tar]:
    """Find the tars of paths, folders and globs, each once, sorted by path.

    Raises UserError of kind `no-shards` for a pattern without tars, `no-store` or `store-failed` if the
    look-up fails.
    """
    tar_of: dict[str, Tar] = {}
    for pattern in patterns:
        store = Store(pattern)
        files, path = store.files, store.root
        try:
            is_pattern = any(sign in path for sign in "*?[") and not files.exists(path)
            paths = files.glob(path) if is_pattern else files.find(path)  # `find` of a file returns the file
        except Exception as error:  # every kind of store raises its own
            raise store.failure("", error) from error
        tars = sorted(name for name in paths if name.endswith(".tar"))
        if not tars:
            hint = "name .tar files, folders that hold them, or globs in the stage's emilia.shards"
            raise UserError("no audio shards here", where=pattern, hint=hint, kind="no-shards")
        for name in tars:
            folder, _, file = name.rpartition("/")
            address = folder if isinstance(files, LocalFileSystem) else files.unstrip_protocol(folder)
            tar_of.setdefault(name, Tar(Store(address), file))
    return [tar_of[name] for name in sorted(tar_of)]


def read_index(tar: Tar, cache: Path | None = None) -> EmiliaIndex:
    """Read the stored index of a tar, or scan the tar if there is none or the tar changed since.

    Raises UserError of kind `damaged-shard` if the file is not a tar, is truncated or has no sample,
    `no-shards` if it is missing, `store-failed` if the store keeps failing.
    """
    files, where = tar.store.files, tar.where
    try:
        source = str(files.ukey(where))
    except FileNotFoundError as error:
        raise UserError("the audio shard is missing", where=where, kind="no-shards") from error
    except Exception as error:  # every kind of store raises its own
        raise tar.store.failure(tar.name, error) from error
    paths = [Path(f"{where}.emilia.npz")] if isinstance(files, LocalFileSystem) else []
    if cache:
        paths.append(cache / f"{hashlib.sha256(where.encode()).hexdigest()[:12]}-{tar.name}.emilia.npz")
    for path in paths:
        stored = EmiliaIndex.from_bytes(path.read_bytes()) if path.is_file() else None
        if stored and stored.source == source:
            return stored
    with files.open(where, "rb") as file:
        index = scan_tar(file, source, where)
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, index.to_bytes())
            break
        except OSError as error:  # no write access, or a full disk
            log.info("the index of %s cannot be stored as %s: %s", where, path, error)
    return index


def scan_tar(file: IO[bytes], source: str, where: object = "") -> EmiliaIndex:
    """Scan an open tar. Raises UserError of kind `damaged-shard`."""
    rows: list[tuple[Any, ...]] = []
    digest, end = hashlib.sha256(), 0
    size = file.seek(0, 2)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for key, group in groupby(tar, lambda member: member.name.partition(".")[0]):
                members = list(group)
                start, end = members[0].offset, _padded_end(members[-1])
                for member in members:
                    digest.update(f"{member.name!a} {member.offset_data} {member.size}\n".encode())
                content = _json_of(tar, members)
                digest.update(content)
                rows.append(
                    (key.encode("utf-8", "replace"), start, end - start, *_filter_values(key, content))
                )
        if end <= size:
            file.seek(end)
            # tarfile takes a damaged header for the end of the archive
            end = size + 1 if file.read(512).strip(b"\0") else end
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise _damaged(f"cannot be read as a tar: {error}", where) from error
    if end > size:
        raise _damaged(f"is damaged or truncated after sample {len(rows)}", where)
    if not rows:
        raise _damaged("has no sample", where)
    digest.update(str(size).encode())
    columns = zip(*rows, strict=True)
    arrays: dict[str, Any] = {
        name: np.array(column, kind) for (name, kind), column in zip(_COLUMNS.items(), columns, strict=True)
    }
    return EmiliaIndex(**arrays, digest=digest.hexdigest(), source=source)


def _padded_end(member: tarfile.TarInfo) -> int:
    blocks = -(-member.size // tarfile.BLOCKSIZE) if member.isreg() else 0
    return member.offset_data + blocks * tarfile.BLOCKSIZE


def _json_of(tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> bytes:
    """The json of a sample; empty if there is none that is safe to open."""
    for member in members:
        if member.name.partition(".")[2] == "json" and not member_problem(member):
            opened = tar.extractfile(member)
            return opened.read() if opened else b""
    return b""


def _filter_values(key: str, content: bytes) -> tuple[float, float, bytes, bytes, bool]:
    """(seconds, dnsmos, speaker, language, damaged) of a sample."""
    try:
        meta = meta_from(key, content)
    except UserError:
        return 0.0, 0.0, b"", b"", True
    return meta.duration, meta.dnsmos, meta.speaker.encode(), meta.language.encode(), False


def _damaged(what: str, where: object) -> UserError:
    return UserError(f"the audio shard {what}", where=where, hint="fetch it again", kind="damaged-shard")
