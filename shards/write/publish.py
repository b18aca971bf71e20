"""Publish a `shards` folder with its cached latents to any fsspec URL, incrementally.

A tar is sent before its index and the manifest last; files that it does not name are removed after it. So a
reader always finds a manifest whose tars exist, and the next run completes one that failed. A complete tar
(same index, same size) is not sent again. If a tar name is reused with other content, a reader of the old
manifest gets tars of the new one; the stream counts their samples as damaged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from uniavgen.shards.atomic_files import locked, replace_file
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import LATENTS_FOLDER, LATENTS_LOCK, LatentCache, cache_folders
from uniavgen.shards.store import Store
from uniavgen.shards.tar.index import index_name
from uniavgen.shards.tar.manifest import read_manifest
from uniavgen.shards.write.energon import META_FOLDER
from uniavgen.shards.write.writer import SHARDS_LOCK

PUBLISHED = "published.json"
"""File in the corpus folder: the URLs that shards were published to."""


@dataclass(frozen=True)
class PublishSummary:
    """Number of tars, latents included, that were `sent`, already `stood` there, or were `removed`."""

    url: str
    sent: int
    stood: int
    removed: int
    bytes: int
    seconds: float


def publish_shards(
    shards: Path, url: str, *, on_progress: Callable[[int, int], None] | None = None
) -> PublishSummary:
    """Bring the copy at `url` in line with the shards; a second run sends nothing.

    `on_progress(done, total)` is called for every tar. Raises UserError if there are no shards, another run
    writes them or their latents, or the store keeps failing (kind `store-failed`). What was sent stays, and
    the next run sends the rest.
    """
    started = time.monotonic()
    if not read_manifest(shards):
        raise UserError("no shards here", where=shards, hint="write them: uniavgen shard", kind="no-shards")
    store = Store(url)
    writing = locked(
        shards.parent / SHARDS_LOCK, "another run writes shards here, publishes them or deletes sources"
    )
    try:
        # else the manifest of the latents could change while its tars are sent
        with (
            writing,
            locked(
                shards.parent / LATENTS_LOCK, "another run computes latents here, publishes or deletes them"
            ),
        ):
            remember_copy(shards.parent, store.files.unstrip_protocol(store.root))
            return _publish(shards, store, url, on_progress or (lambda done, total: None), started)
    except UserError:
        raise
    except Exception as error:  # every kind of store raises its own
        raise store.failure("", error, "written") from error


def published(corpus: Path) -> list[str]:
    """URLs that shards were ever published to. A deleted source stays there until the next publication."""
    try:
        return [str(url) for url in json.loads((corpus / PUBLISHED).read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(
            "the list of published copies is damaged", where=corpus / PUBLISHED, hint="restore or remove it"
        ) from error


def remember_copy(corpus: Path, url: str) -> None:
    """Record a URL before anything is sent, because a failed copy has files too."""
    urls = sorted({*published(corpus), url})
    replace_file(corpus / PUBLISHED, (json.dumps(urls, indent=0) + "\n").encode())


def _publish(
    shards: Path, store: Store, url: str, on_progress: Callable[[int, int], None], started: float
) -> PublishSummary:
    tars = list(_tar_names(shards))
    small_files = [
        *(f"{tar}.idx" for tar in tars if not tar.startswith(LATENTS_FOLDER)),
        *_small_files(shards),
    ]
    missing = [
        name for name in (*small_files, *tars, *map(index_name, tars)) if not (shards / name).is_file()
    ]
    if missing:
        text = f"{len(missing)} files of these shards are missing, first {missing[0]}"
        raise UserError(text, where=shards, hint="run uniavgen shard", kind="damaged-shards")
    sent = size = 0
    for number, tar in enumerate(tars, start=1):
        if not _is_published(shards, tar, store):
            store.put(shards / tar, tar)
            store.put(shards / index_name(tar), index_name(tar))
            sent, size = sent + 1, size + (shards / tar).stat().st_size
        on_progress(number, len(tars))
    for name in [*small_files, "manifest.json"]:
        store.put(shards / name, name)
    named = {*small_files, "manifest.json", *tars, *(index_name(tar) for tar in tars)}
    stale = [name for name in store.list_files() if name not in named and _is_shard_file(name)]
    for name in stale:
        store.remove(name)
    removed = sum(name.endswith(".tar") for name in stale)
    return PublishSummary(url, sent, len(tars) - sent, removed, size, time.monotonic() - started)


def _tar_names(shards: Path) -> Iterator[str]:
    """Every tar that a manifest names, by its path in the folder."""
    manifest = read_manifest(shards)
    yield from sorted(manifest.names if manifest else ())
    for folder in cache_folders(shards):
        if (path := folder / "manifest.json").is_file():
            cache = LatentCache.from_bytes(path.read_bytes(), path)
            yield from (f"{LATENTS_FOLDER}/{folder.name}/{entry.name}" for entry in cache.entries)


def _small_files(shards: Path) -> Iterator[str]:
    """Files beside the tars, manifests of latents included."""
    yield from (
        f"{META_FOLDER}/{path.name}"
        for path in sorted((shards / META_FOLDER).glob("*"))
        if path.suffix != ".part"
    )
    names = (f"{LATENTS_FOLDER}/{folder.name}/manifest.json" for folder in cache_folders(shards))
    yield from (name for name in names if (shards / name).is_file())


def _is_published(shards: Path, tar: str, store: Store) -> bool:
    """True if the store has this tar: the same index, which is sent after the tar, and the same size."""
    index = store.read_if_exists(index_name(tar))
    return (
        index == (shards / index_name(tar)).read_bytes() and store.size(tar) == (shards / tar).stat().st_size
    )


def _is_shard_file(name: str) -> bool:
    """True for names that shards and latents are written under. Other files at the URL are not touched."""
    if "/" in name:
        return name.startswith(f"{LATENTS_FOLDER}/") or (
            name.startswith(f"{META_FOLDER}/.") and name.endswith(".part")
        )
    complete = name.removeprefix(".").removesuffix(".part")  # a killed copy leaves partial files in a folder
    return complete.endswith((".tar", ".tar.idx", index_name(".tar"))) or name == ".manifest.json.part"
