"""Cached latents beside the shards: codec outputs for fixed windows of every sample, computed once.

    shards/latents/<digest>/manifest.json        `fields` of the cache, and a `LatentEntry` per sidecar
    shards/latents/<digest>/<shard>.tar          members <clip_id>.latent.npz, in the order of the shard
    shards/latents/<digest>/<shard>.tar.index.npz   position of each sample, and the `LatentEntry` again

A sidecar is a tar of its own, with the name of its shard and bound to that shard's SHA-256; shards are never
changed. `digest` is a hash of `fields`: codecs with their weights, geometry of the windows, version of the
code. Nothing is pickled. Writing shards removes the sidecars of missing and changed shards. Deleting a source
removes every sidecar with one of its clips at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.shards.atomic_files import replace_file
from uniavgen.shards.errors import UserError
from uniavgen.shards.store import Store
from uniavgen.shards.tar.index import ShardIndex, index_name
from uniavgen.shards.tar.tar_reader import read_members
from uniavgen.shards.tar.tar_writer import TarPart, TarSample, write_tar

LATENTS_FOLDER = "latents"
"""Folder of all caches, below `shards`."""
CODECS_FOLDER = "codecs"
"""Folder of the codecs that were fitted to the training clips, below `shards`."""
LATENTS_LOCK = ".latents.lock"
"""Lock file in the corpus folder, held while latents are computed, published or deleted."""
LATENT_MEMBER = "latent.npz"
LATENTS_VERSION = 1
"""Version of the file format. Another version is another cache."""
CACHE_COMMAND = "uniavgen cache-latents"
_OPEN_THREADS = 16


@dataclass(frozen=True)
class LatentSample:
    """W windows of one clip: the content of a `.latent.npz`. Floats have the `dtype` of the cache's `fields`.

    Per window: start int32 [W], its first pixel frame; video [W, 48, T, h, w]; reference [W, 48, 1, h, w];
    face [W, T, h/2, w/2] in 0..1; mouth [W, T, h, w] in 0..1, if the cache was made with it; mel [W, M, L];
    reference_mel [W, M, Lr]; reference_inside bool [W], true if the reference is from inside the window;
    speech bytes [W], the words of the window in UTF-8. Per clip: caption [n, Dc], features of its n tokens;
    caption_mask bool [Lc], their positions.
    """

    start: np.ndarray
    video: np.ndarray
    reference: np.ndarray
    face: np.ndarray
    mel: np.ndarray
    reference_mel: np.ndarray
    reference_inside: np.ndarray
    speech: np.ndarray
    caption: np.ndarray
    caption_mask: np.ndarray
    mouth: np.ndarray | None = None

    def to_bytes(self) -> bytes:
        """The content of the member. Equal arrays give equal bytes."""
        out = io.BytesIO()
        np.savez(out, **{name: array for name, array in vars(self).items() if array is not None})
        return out.getvalue()

    @staticmethod
    def from_bytes(data: bytes, key: str, where: object = "") -> LatentSample:
        """Parse a member. Raises UserError of kind `damaged-sample` that names the clip."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                names = [field.name for field in fields(LatentSample)]
                present = [name for name in names if name != "mouth" or name in arrays]
                return LatentSample(**{name: arrays[name] for name in present})
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"latents of {key} are damaged: {error}", where=where, kind="damaged-sample"
            ) from error


@dataclass(frozen=True)
class LatentEntry:
    """A sidecar's entry in manifest and index. `passed_over`: clips without latents, with the reason."""

    name: str
    shard_sha256: str
    samples: int
    bytes: int
    sha256: str
    passed_over: dict[str, str]


@dataclass(frozen=True)
class LatentCache:
    """One folder of sidecars: settings as values (`fields`) and as text (`described`), complete sidecars."""

    digest: str
    fields: dict[str, Any]
    described: dict[str, str]
    entries: tuple[LatentEntry, ...] = ()

    def to_bytes(self) -> bytes:
        return (json.dumps({"latents_version": LATENTS_VERSION, **asdict(self)}, indent=1) + "\n").encode()

    @staticmethod
    def from_bytes(data: bytes, where: object) -> LatentCache:
        """Parse a manifest. Raises UserError of kind `damaged-latents` or `wrong-version`."""
        hint = f"remove the folder and run {CACHE_COMMAND} again"
        try:
            content = json.loads(data)
            if (version := content.pop("latents_version")) != LATENTS_VERSION:
                text = f"these latents have version {version}, this program reads {LATENTS_VERSION}"
                raise UserError(text, where=where, hint=hint, kind="wrong-version")
            entries = tuple(LatentEntry(**entry) for entry in content.pop("entries"))
            return LatentCache(**content, entries=entries)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                "the manifest of the latents is damaged", where=where, hint=hint, kind="damaged-latents"
            ) from error


def latents_digest(fields: Mapping[str, Any]) -> str:
    """Name of the cache with these fields."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class SidecarPart:
    """A complete sidecar that still has a temporary name; `commit_tar` renames it."""

    part: TarPart
    entry: LatentEntry


def write_sidecar(
    folder: Path, shard: str, shard_sha256: str, latents: Iterable[tuple[str, LatentSample | str]]
) -> SidecarPart:
    """Write the sidecar of one shard from (key, latents or skip reason) of its clips in order."""
    passed_over: dict[str, str] = {}

    def members() -> Iterator[TarSample]:
        for key, sample_or_reason in latents:
            if isinstance(sample_or_reason, str):
                passed_over[key] = sample_or_reason
            else:
                yield TarSample(key, {LATENT_MEMBER: sample_or_reason.to_bytes()})

    part = write_tar(folder / shard, members())
    return SidecarPart(
        part, LatentEntry(shard, shard_sha256, len(part.spans), part.bytes, part.sha256, passed_over)
    )


def complete_sidecars(folder: Path, shards: Mapping[str, str]) -> list[LatentEntry]:
    """Complete sidecars of these shards (name to SHA-256) in the folder of a cache, by name."""
    return [
        entry
        for name, digest in sorted(shards.items())
        if (entry := _entry(folder / name)) and entry.shard_sha256 == digest
    ]


def write_manifest(folder: Path, cache: LatentCache) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "manifest.json", cache.to_bytes())


def read_caches(store: Store) -> tuple[list[LatentCache], list[str]]:
    """Read the caches beside the shards, with a line per unreadable one. Raises UserError if the store
    fails."""
    caches, problems = [], []
    for digest in store.list_folders(LATENTS_FOLDER):
        name = f"{LATENTS_FOLDER}/{digest}/manifest.json"
        try:
            content = store.read_file(
                name, missing="a cache of latents has no manifest", hint=f"run {CACHE_COMMAND}"
            )
            caches.append(LatentCache.from_bytes(content, store.full_path(name)))
        except UserError as error:
            if error.kind == "store-failed":
                raise
            problems.append(str(error))
    return caches, problems


class LatentReader:
    """Reads latents of the samples of some shards (name to SHA-256). Threads may share it.

    Raises UserError of kind `no-latents` if the cache does not cover the shards; with `partial`, if it covers
    none of them.
    """

    def __init__(
        self, store: Store, cache: LatentCache, shards: Mapping[str, str], *, partial: bool = False
    ) -> None:
        self.store, self.cache = store, cache
        self._entries = {
            entry.name: entry for entry in cache.entries if shards.get(entry.name) == entry.shard_sha256
        }
        self.missing = sorted(shards.keys() - self._entries.keys())
        """Shards that the cache does not cover."""
        if self.missing and not (partial and self._entries):
            raise UserError(
                f"latents {cache.digest} cover {len(self._entries)} of {len(shards)} shards, "
                f"not {self.missing[0]}",
                where=store.full_path(LATENTS_FOLDER),
                hint=f"run {CACHE_COMMAND}",
                kind="no-latents",
            )
        with ThreadPoolExecutor(_OPEN_THREADS, thread_name_prefix="open") as pool:
            self._indexes = dict(zip(self._entries, pool.map(self._index, self._entries), strict=True))

    def covers(self, shard: str) -> bool:
        """Whether the cache has latents of a shard."""
        return shard in self._entries

    def skip_reason(self, shard: str, key: str) -> str:
        """Why a sample has no latents (`short-clip`, `damaged-sample`); empty if it has."""
        return self._entries[shard].passed_over.get(key, "")

    def read(self, shard: str, key: str) -> LatentSample:
        """Read the latents of a sample. Raises UserError of kind `damaged-sample`."""
        name = self._path(shard)
        index, encoded = self._indexes[shard], key.encode()
        # the samples of a shard are in order of their keys
        row = int(np.searchsorted(index.key, encoded)) if len(index) else 0
        if row >= len(index) or index.key[row] != encoded:
            raise UserError(f"no latents of {key}", where=self.store.full_path(name), kind="damaged-sample")
        span = self.store.read_span(name, int(index.offset[row]), int(index.length[row]))
        where = self.store.full_path(name)
        if zlib.crc32(span) != index.crc32[row]:
            raise UserError(
                f"the latents of {key} changed since they were written", where=where, kind="damaged-sample"
            )
        members = read_members(span, key, where)
        return LatentSample.from_bytes(members.get(LATENT_MEMBER, b""), key, where)

    def _path(self, shard: str) -> str:
        return f"{LATENTS_FOLDER}/{self.cache.digest}/{shard}"

    def _index(self, shard: str) -> ShardIndex:
        name = index_name(self._path(shard))
        content = self.store.read_file(name, missing="a sidecar has no index", hint=f"run {CACHE_COMMAND}")
        index = ShardIndex.from_bytes(content, self.store.full_path(name))
        if len(index) != self._entries[shard].samples:
            raise UserError(
                "the index belongs to another sidecar",
                where=self.store.full_path(name),
                hint=f"run {CACHE_COMMAND}",
                kind="damaged-index",
            )
        return index


def remove_stale_latents(shards_dir: Path, shards: Mapping[str, str]) -> int:
    """Delete all sidecars but those of these shards (name to SHA-256); returns their number."""
    return sum(
        _remove(folder, [tar.name for tar in _sidecars(folder) if not _is_of(tar, shards.get(tar.name))])
        for folder in cache_folders(shards_dir)
    )


def delete_latents(shards_dir: Path, clips: Collection[str]) -> int:
    """Delete every sidecar with one of the clips, unreadable ones, and partial files; returns the count.

    A fitted codec is deleted with any clip, as it may have been fitted to it.

    The next `cache-latents` computes the other samples of such a sidecar again, for their rewritten shard.
    """
    codecs = [path for path in (shards_dir / CODECS_FOLDER).glob("*") if clips and path.is_file()]
    for path in codecs:
        path.unlink(missing_ok=True)
    removed = len(codecs)
    for folder in cache_folders(shards_dir):
        removed += remove_partial_files(folder)
        removed += _remove(folder, [tar.name for tar in _sidecars(folder) if _holds(tar, clips)])
    return removed


def remove_partial_files(folder: Path) -> int:
    """Remove partial files of killed runs in the folder of a cache; returns their number."""
    partial = list(folder.glob(".*.part"))
    for path in partial:
        path.unlink(missing_ok=True)
    return len(partial)


def cache_folders(shards_dir: Path) -> list[Path]:
    """The folders of all caches beside the shards."""
    root = shards_dir / LATENTS_FOLDER
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _sidecars(folder: Path) -> list[Path]:
    """Paths of the tars of all sidecars, also of those with only an index."""
    names = {path.name.removesuffix(index_name("")) for path in folder.glob(index_name("*"))}
    return sorted(folder / name for name in names | {path.name for path in folder.glob("*.tar")})


def _is_of(tar: Path, shard_sha256: str | None) -> bool:
    entry = _entry(tar)
    return entry is not None and entry.shard_sha256 == shard_sha256


def _holds(tar: Path, clips: Collection[str]) -> bool:
    try:
        index = ShardIndex.from_bytes(tar.with_name(index_name(tar.name)).read_bytes())
        return not {*index.sample_keys(), *LatentEntry(**index.shard).passed_over}.isdisjoint(clips)
    except (OSError, UserError, TypeError):
        return True  # unreadable: it may hold one of the clips


def _entry(tar: Path) -> LatentEntry | None:
    """The entry of a complete sidecar from its index; None if there is none."""
    try:
        entry = LatentEntry(**ShardIndex.from_bytes(tar.with_name(index_name(tar.name)).read_bytes()).shard)
        return entry if tar.stat().st_size == entry.bytes else None
    except (OSError, UserError, TypeError):
        return None


def _remove(folder: Path, names: Collection[str]) -> int:
    """Delete sidecars: first from the manifest, then index and tar."""
    manifest = folder / "manifest.json"
    if names and manifest.is_file():
        try:
            cache = LatentCache.from_bytes(manifest.read_bytes(), manifest)
            kept = tuple(entry for entry in cache.entries if entry.name not in names)
            write_manifest(folder, LatentCache(cache.digest, cache.fields, cache.described, kept))
        except UserError:
            manifest.unlink()
    for name in names:
        (folder / index_name(name)).unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
    return len(names)
