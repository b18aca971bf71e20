"""Write the kept clips to WebDataset tars, with indexes for random access and a manifest.

    shards/{train,val}-000000.tar            samples in order of their ids, members as in `shards.sample`
    shards/train-000000.tar.index.npz        position of each sample (`shards.tar.index`)
    shards/train-000000.tar.idx, .nv-meta/   index for Megatron-Energon (`shards.write.energon`)
    shards/manifest.json                     versions, and counts, licences and hash per shard

The same samples give the same bytes for any number of workers. Workers write files under temporary names.
Only the driver, which holds the lock of the folder, renames them, so leftovers of a killed run cannot disturb
the next. New tars never take a name of the current manifest, and stale tars are removed after the new
manifest is in place. So a reader, also after a kill at any instant, finds a manifest whose tars exist. The
next run reuses finished tars.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uniavgen.shards.atomic_files import locked, replace_file
from uniavgen.shards.cluster import map_unordered, worth_ray
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import remove_stale_latents
from uniavgen.shards.sample import SCHEMA_VERSION, FaceTrack, Sample, SampleMeta, frame_size, to_members
from uniavgen.shards.tar.index import ShardIndex, index_name
from uniavgen.shards.tar.manifest import MANIFEST_VERSION, ShardEntry
from uniavgen.shards.tar.tar_writer import TarPart, TarSample, commit_tar, write_tar
from uniavgen.shards.write.changes import (
    MEDIA,
    CaptionFunction,
    NewShard,
    ShardChanges,
    ShardSample,
    clip_rows,
    count_licences,
    find_changes,
    kept_clips,
    require_decisions,
    sample_meta,
)
from uniavgen.shards.write.energon import META_FOLDER, write_energon

SHARDS_LOCK = ".shards.lock"
"""Lock file in the corpus folder, held while shards are written, published or deleted from."""

_WRITTEN_NAME = re.compile(r"^(train|val|test)-\d{6}\.tar(\.idx|\.index\.(npz|json))?$")
_PARTIAL_NAME = re.compile(r"^\..+\.part$")


@dataclass(frozen=True)
class ShardSummary:
    """The shards on disk (`shards`, `samples` and `hours` by split), and what this run changed.

    `undecided` is the number of clips without a decision.
    """

    shards: dict[str, int]
    samples: dict[str, int]
    hours: dict[str, float]
    licences: dict[str, int]
    bytes: int
    written: int
    reused: int
    removed: int
    undecided: int
    seconds: float
    manifest: Path


@dataclass(frozen=True)
class WrittenShard:
    """A complete tar that still has a temporary name, and its entry of the manifest."""

    part: TarPart
    entry: ShardEntry


def write_shards(
    corpus: Corpus,
    config: ShardConfig,
    *,
    caption: CaptionFunction,
    on_progress: Callable[[int, int], None] | None = None,
    lock_held: bool = False,
) -> ShardSummary:
    """Bring `shards/` in line with the decisions. A second run changes nothing. Many tars use Ray tasks.

    `on_progress(done, total)` is called for every tar. `lock_held`: the caller holds `SHARDS_LOCK`. Raises
    UserError if there are no decisions or kept clips, media of a kept clip are missing or damaged, another
    run is at work, a newer release wrote the shards, or the disk fails. The current manifest stays valid
    then.
    """
    started = time.monotonic()
    folder = corpus.root / "shards"
    require_decisions(corpus)
    lock = (
        nullcontext()
        if lock_held
        else locked(
            corpus.root / SHARDS_LOCK, "another run writes shards here, publishes them or deletes sources"
        )
    )
    try:
        with lock:
            # read the tables under the lock: a deletion that held it before has removed its rows
            changes = find_changes(corpus, kept_clips(corpus), config, caption=caption)
            folder.mkdir(exist_ok=True)
            _remove_partial_files(folder)
            _check_space(folder, changes)
            written = list(_write_new(folder, changes, caption, on_progress or (lambda done, total: None)))
            entries = sorted([*changes.kept, *written], key=lambda entry: entry.name)
            manifest = _manifest(corpus, config, entries)
            splits = {split: [e for e in entries if e.split == split] for split in manifest["splits"]}
            write_energon(folder, splits)
            replace_file(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())
            removed = _remove_stale(folder, entries)
            remove_stale_latents(folder, {entry.name: entry.sha256 for entry in entries})
    except OSError as error:
        hint = "check rights and space, then run it again"
        raise UserError(
            f"shards cannot be written: {error.strerror or error}", where=folder, hint=hint
        ) from error
    totals = manifest["splits"]
    return ShardSummary(
        shards={split: total["shards"] for split, total in totals.items()},
        samples={split: total["samples"] for split, total in totals.items()},
        hours={split: total["seconds"] / 3600 for split, total in totals.items()},
        licences=manifest["licences"],
        bytes=sum(entry.bytes for entry in entries),
        written=len(written),
        reused=len(changes.kept),
        removed=removed,
        undecided=changes.undecided,
        seconds=time.monotonic() - started,
        manifest=folder / "manifest.json",
    )


def _remove_partial_files(folder: Path) -> None:
    """Remove partial files of a killed run, before their disk space is needed."""
    for path in [*folder.iterdir(), *(folder / META_FOLDER).glob(".*")]:
        if _PARTIAL_NAME.match(path.name):
            path.unlink()


def _check_space(folder: Path, changes: ShardChanges) -> None:
    needed = sum(sample.bytes for shard in changes.new for sample in shard.samples)
    free = shutil.disk_usage(folder).free
    if needed > free:
        text = f"the new shards need {needed / 1e6:.1f} MB, only {free / 1e6:.1f} MB are free"
        hint = "free disk space; old shards are removed only after the new ones are complete"
        raise UserError(text, where=folder, hint=hint, kind="no-space")


def _write_new(
    folder: Path, changes: ShardChanges, caption: CaptionFunction, on_progress: Callable[[int, int], None]
) -> Iterator[ShardEntry]:
    """Write the new tars and yield their entries. Tars that an interrupted run finished are reused."""

    def with_metas(shard: NewShard) -> NewShard:
        rows = changes.clips.take([sample.row for sample in shard.samples])
        metas = tuple(sample_meta(row, caption).model_dump_json() for row in clip_rows(rows))
        return replace(shard, metas=metas)

    total, done = len(changes.new), 0
    unfinished = []
    for shard in changes.new:
        entry = _finished_entry(shard)
        if entry:
            done += 1
            on_progress(done, total)
            yield entry
        else:
            unfinished.append(shard)
    size = sum(sample.bytes for shard in unfinished for sample in shard.samples)
    on_ray = worth_ray(len(unfinished), size)
    for written in map_unordered(write_shard, map(with_metas, unfinished), on_ray=on_ray):
        commit_tar(folder, written.part, written.entry)
        done += 1
        on_progress(done, total)
        yield written.entry


def _finished_entry(shard: NewShard) -> ShardEntry | None:
    """The entry of a complete tar with the shard's name and samples; None if there is none."""
    tar = shard.corpus / "shards" / shard.name
    index = tar.with_name(index_name(shard.name))
    try:
        entry = ShardEntry(**ShardIndex.from_bytes(index.read_bytes(), index).shard)
        same = entry.inputs == shard.inputs and tar.stat().st_size == entry.bytes
    except (OSError, UserError, TypeError):
        return None
    return replace(entry, licences=count_licences(shard.samples)) if same else None


def write_shard(shard: NewShard) -> WrittenShard:
    """Write one tar under a temporary name. Raises UserError that names a clip with damaged media."""
    tar = shard.corpus / "shards" / shard.name
    pairs = zip(shard.samples, shard.metas, strict=True)
    part = write_tar(tar, (_tar_sample(shard.corpus, sample, meta) for sample, meta in pairs))
    entry = ShardEntry(
        name=shard.name,
        split=shard.split,
        samples=len(part.spans),
        seconds=round(sum(sample.seconds for sample in shard.samples), 3),
        bytes=part.bytes,
        sha256=part.sha256,
        index=index_name(shard.name),
        inputs=shard.inputs,
        licences=count_licences(shard.samples),
    )
    return WrittenShard(part, entry)


def _tar_sample(corpus: Path, shard_sample: ShardSample, meta_json: str) -> TarSample:
    """Read the media of a sample. Raises UserError if they are damaged."""
    meta = SampleMeta.model_validate_json(meta_json)
    video, audio, face = (Corpus(corpus).media_path(meta.clip_id, extension) for extension in MEDIA)
    try:
        track = FaceTrack.from_bytes(face.read_bytes())
        sample = Sample(meta, video.read_bytes(), audio.read_bytes(), track)
        width, height = frame_size(sample.video)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, UserError) as error:
        raise UserError(
            f"media of clip {meta.clip_id} are damaged: {error}",
            where=video.parent,
            hint="remove them and run uniavgen ingest SOURCES --retry",
        ) from error
    return TarSample(shard_sample.key, to_members(sample), shard_sample.seconds, width, height)


def _manifest(corpus: Corpus, config: ShardConfig, entries: Sequence[ShardEntry]) -> dict[str, Any]:
    versions = corpus.versions()
    digests = corpus.read("decisions", columns=["policy_digest"])["policy_digest"].unique().to_pylist()
    splits = {}
    for split in sorted({entry.split for entry in entries}):
        of_split = [entry for entry in entries if entry.split == split]
        sums = {
            name: sum(getattr(entry, name) for entry in of_split) for name in ("samples", "seconds", "bytes")
        }
        splits[split] = {"shards": len(of_split), **sums}
    licences = sorted({name for entry in entries for name in entry.licences})
    return {
        "manifest_version": MANIFEST_VERSION,
        "schema_version": SCHEMA_VERSION,
        "tables": {name: versions[name] for name in ("sources", "clips", "decisions")},
        "policy_digest": digests[0] if digests else "",
        "layout": config.packing(),
        "splits": splits,
        "licences": {name: sum(entry.licences.get(name, 0) for entry in entries) for name in licences},
        "shards": [asdict(entry) for entry in entries],
    }


def _remove_stale(folder: Path, entries: Sequence[ShardEntry]) -> int:
    """Remove shard files that the manifest does not name; returns the number of tars removed."""
    named = {name for entry in entries for name in (entry.name, f"{entry.name}.idx", index_name(entry.name))}
    stale = [path for path in folder.iterdir() if _WRITTEN_NAME.match(path.name) and path.name not in named]
    for path in stale:
        path.unlink()
    return sum(path.suffix == ".tar" for path in stale)
