"""Verify cached latents against their manifests: open, hash and count every sidecar."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import (
    CACHE_COMMAND,
    LATENT_MEMBER,
    LATENTS_FOLDER,
    LatentCache,
    LatentEntry,
    LatentSample,
    cache_folders,
    latents_digest,
)
from uniavgen.shards.tar.index import ShardIndex, index_name
from uniavgen.shards.tar.manifest import ShardEntry, read_shard_keys
from uniavgen.shards.tar.tar_reader import read_members, read_span, size_and_digest

REPAIR = f"remove it and run {CACHE_COMMAND}"


@dataclass(frozen=True)
class SidecarCheck:
    """One sidecar to open: the folder and `fields` of its cache, its entry, and the entry of its shard."""

    folder: Path
    entry: LatentEntry
    fields: dict[str, Any]
    shard: ShardEntry


def latent_checks(shards_dir: Path, shards: Mapping[str, ShardEntry]) -> tuple[list[SidecarCheck], list[str]]:
    """The sidecars to open, and the defects of the manifests that name them."""
    checks, defects = [], list[str]()
    for folder in cache_folders(shards_dir):
        name = f"{LATENTS_FOLDER}/{folder.name}"
        try:
            cache = LatentCache.from_bytes((folder / "manifest.json").read_bytes(), f"{name}/manifest.json")
        except OSError:
            defects.append(f"{name}: has no manifest; run {CACHE_COMMAND}, or remove it")
            continue
        except UserError as error:
            defects.append(f"{name}: {error}")
            continue
        if not folder.name == cache.digest == latents_digest(cache.fields):
            defects.append(f"{name}: its manifest belongs to another cache; {REPAIR}")
        for entry in cache.entries:
            shard = shards.get(entry.name)
            if shard is None or shard.sha256 != entry.shard_sha256:
                defects.append(
                    f"{name}/{entry.name}: its shard is missing or was rewritten; run {CACHE_COMMAND}"
                )
            else:
                checks.append(SidecarCheck(folder, entry, cache.fields, shard))
        unnamed = {path.name for path in folder.glob("*.tar")} - {entry.name for entry in cache.entries}
        defects += [
            f"{name}/{tar}: the manifest does not name it; run {CACHE_COMMAND}" for tar in sorted(unnamed)
        ]
    return checks, defects


def verify_sidecar(check: SidecarCheck) -> tuple[str, ...]:
    """Open one sidecar; returns a line per defect, never raises one."""
    tar = check.folder / check.entry.name
    name = f"{LATENTS_FOLDER}/{check.folder.name}/{tar.name}"
    try:
        return tuple(f"{name}: {problem}; {REPAIR}" for problem in _problems(check, tar))
    except FileNotFoundError as error:
        return (f"{name}: {Path(str(error.filename)).name} is missing; run {CACHE_COMMAND}",)
    except (OSError, UserError, tarfile.TarError) as error:
        return (f"{name}: {error}",)


def _problems(check: SidecarCheck, tar: Path) -> Iterator[str]:
    entry = check.entry
    size, digest = size_and_digest(tar)
    if (size, digest) != (entry.bytes, entry.sha256):
        yield (
            f"{size} bytes, the manifest says {entry.bytes}"
            if size != entry.bytes
            else "its SHA-256 differs from the manifest"
        )
    index = ShardIndex.from_bytes(tar.with_name(index_name(tar.name)).read_bytes(), index_name(tar.name))
    keys = index.sample_keys()
    if sorted([*keys, *entry.passed_over]) != sorted(read_shard_keys(check.folder.parents[1], check.shard)):
        yield "its clips differ from those of its shard"
    with tar.open("rb") as file:
        for row, key in enumerate(keys):
            span = read_span(file, index, row)
            if zlib.crc32(span) != index.crc32[row]:
                yield f"clip {key}: its bytes changed since they were written"
                continue
            try:
                latents = LatentSample.from_bytes(read_members(span, key).get(LATENT_MEMBER, b""), key)
                yield from (f"clip {key}: {problem}" for problem in _array_problems(latents, check.fields))
            except UserError as error:
                yield error.what


def _array_problems(latents: LatentSample, fields: Mapping[str, Any]) -> Iterator[str]:
    """Differences between the arrays of a clip and the fields of its cache."""
    windows = len(latents.start)
    if not 0 < windows <= fields.get("windows", windows):
        yield f"{windows} windows, the cache has {fields.get('windows')}"
    for name in ("video", "reference", "face", "mel", "reference_mel"):
        array = getattr(latents, name)
        if len(array) != windows or str(array.dtype) != fields.get("dtype"):
            yield f"{name} has {len(array)} windows as {array.dtype}"
        elif not np.isfinite(array).all():
            yield f"{name} has NaN or Inf values"
