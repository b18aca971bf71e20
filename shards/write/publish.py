"""Shards to an object store: a copy of a `shards` folder at any fsspec URL, brought in line by what changed.

In: a corpus's `shards` folder, a URL. Out: the same files there, cached latents included. A tar goes before its index, the
manifest last of all, and what it no longer names goes after it: a reader finds a manifest whose tars are there, and a run
that fails or is killed is completed by the next. A tar that is there whole (its index says the same, its size is right) is not
sent again. Only where a name comes back with other content does a reader of the old manifest meet tars that are not its
own: the stream counts their samples as damaged.
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
"""In the corpus folder: where shards were copied to."""


@dataclass(frozen=True)
class PublishSummary:
    """What was sent and what stood there already, in tars (shards and sidecars of latents), and what went."""

    url: str
    sent: int
    stood: int
    removed: int
    bytes: int
    seconds: float


def publish_shards(
    shards: Path, url: str, *, on_progress: Callable[[int, int], None] | None = None
) -> PublishSummary:
    """Bring the copy at `url` in line with the shards; doing it again sends nothing.

    `on_progress(done, total)` is called for every tar. Raises UserError where there are no shards, another run writes them or
    their latents, or the store refuses (kind `store-failed`); what it has stays, and the next run sends the rest.
    """
    started = time.monotonic()
    if not read_manifest(shards):
        raise UserError("no shards here", where=shards, hint="write them: uniavgen shard", kind="no-shards")
    store = Store(url)
    writing = locked(shards.parent / SHARDS_LOCK, "another run writes shards here, copies them or forgets")
    try:
        # a manifest of latents that changed on the way would name tars that were not sent
        with (
            writing,
            locked(shards.parent / LATENTS_LOCK, "another run makes, copies or forgets latents here"),
        ):
            _remember(shards.parent, store.files.unstrip_protocol(store.root))
            return _publish(shards, store, url, on_progress or (lambda done, total: None), started)
    except UserError:
        raise
    except Exception as error:  # every kind of store raises its own
        raise store.failure("", error, "written") from error


def published(corpus: Path) -> list[str]:
    """Every URL that shards of a corpus were ever copied to: what is forgotten here stands there until it is copied again."""
    try:
        return [str(url) for url in json.loads((corpus / PUBLISHED).read_text())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        raise UserError(
            "the list of copies is damaged", where=corpus / PUBLISHED, hint="restore or remove it"
        ) from error


def _remember(corpus: Path, url: str) -> None:
    """Before anything is sent: a copy that fails half-way holds something too."""
    urls = sorted({*published(corpus), url})
    replace_file(corpus / PUBLISHED, (json.dumps(urls, indent=0) + "\n").encode())


def _publish(
    shards: Path, store: Store, url: str, on_progress: Callable[[int, int], None], started: float
) -> PublishSummary:
    tars = list(_tars(shards))
    small = [*(f"{tar}.idx" for tar in tars if not tar.startswith(LATENTS_FOLDER)), *_small(shards)]
    missing = [name for name in (*small, *tars, *map(index_name, tars)) if not (shards / name).is_file()]
    if missing:
        text = f"{len(missing)} files of these shards are missing, first {missing[0]}"
        raise UserError(text, where=shards, hint="run uniavgen shard", kind="damaged-shards")
    sent = size = 0
    for number, tar in enumerate(tars, start=1):
        if not _stands(shards, tar, store):
            store.put(shards / tar, tar)
            store.put(shards / index_name(tar), index_name(tar))
            sent, size = sent + 1, size + (shards / tar).stat().st_size
        on_progress(number, len(tars))
    for name in [*small, "manifest.json"]:
        store.put(shards / name, name)
    named = {*small, "manifest.json", *tars, *(index_name(tar) for tar in tars)}
    stale = [name for name in store.list_files() if name not in named and _ours(name)]
    for name in stale:
        store.remove(name)
    gone = sum(name.endswith(".tar") for name in stale)
    return PublishSummary(url, sent, len(tars) - sent, gone, size, time.monotonic() - started)


def _tars(shards: Path) -> Iterator[str]:
    """Every tar that a manifest names, by its path within the folder."""
    manifest = read_manifest(shards)
    yield from sorted(manifest.names if manifest else ())
    for folder in cache_folders(shards):
        if (path := folder / "manifest.json").is_file():
            cache = LatentCache.from_bytes(path.read_bytes(), path)
            yield from (f"{LATENTS_FOLDER}/{folder.name}/{entry.name}" for entry in cache.entries)


def _small(shards: Path) -> Iterator[str]:
    """What stands beside the tars, manifests of latents included."""
    yield from (
        f"{META_FOLDER}/{path.name}"
        for path in sorted((shards / META_FOLDER).glob("*"))
        if path.suffix != ".part"
    )
    names = (f"{LATENTS_FOLDER}/{folder.name}/manifest.json" for folder in cache_folders(shards))
    yield from (name for name in names if (shards / name).is_file())


def _stands(shards: Path, tar: str, store: Store) -> bool:
    """Whether the store has this very tar: the index there, which came after it, is the one here, and the size is right."""
    there = store.read_if_exists(index_name(tar))
    return (
        there == (shards / index_name(tar)).read_bytes() and store.size(tar) == (shards / tar).stat().st_size
    )


def _ours(name: str) -> bool:
    """Whether a name is one that shards or latents are written under: nothing else at the URL is touched."""
    if "/" in name:
        return name.startswith(f"{LATENTS_FOLDER}/") or (
            name.startswith(f"{META_FOLDER}/.") and name.endswith(".part")
        )
    whole = name.removeprefix(".").removesuffix(".part")  # a copy that was killed leaves its half in a folder
    return whole.endswith((".tar", ".tar.idx", index_name(".tar"))) or name == ".manifest.json.part"
