"""Corpus to shards: WebDataset tars, two indexes beside each for random access, and a manifest over all of them.

In: the clips that the decisions keep, their media, and a caption for each. Out, in the corpus folder:

    shards/{train,val}-000000.tar              samples in the order of their ids, members as `shards.sample` says
    shards/train-000000.tar.index.npz          where each sample stands (`shards.index`)
    shards/train-000000.tar.idx, .nv-meta/     what Megatron-Energon wants (`shards.energon`)
    shards/manifest.json                       what belongs to the corpus: versions, and per shard counts, licences, hash

The same samples give the same bytes, whatever the number of workers: the plan says what stands where, and owner, rights
and times in the tar are fixed. Workers write files under names of their own; only the driver, which holds the folder's
lock, moves them into place, so what is left of a killed run cannot disturb the next. New tars never take the name of one
that the manifest in force knows, and stale ones go after the new manifest stands. So a reader, or a run that is killed at
any instant, always finds a manifest whose tars are there; the next run takes the tars that were finished.
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
from uniavgen.shards.tar.tar_writer import TarPart, TarSample, put_in_place, write_tar
from uniavgen.shards.write.changes import (
    MEDIA,
    Caption,
    NewShard,
    ShardChanges,
    ShardSample,
    clip_rows,
    count_licences,
    find_changes,
    kept_clips,
    require_decisions,
    sample_meta,
    shard_paths,
)
from uniavgen.shards.write.energon import META_FOLDER, write_energon

SHARDS_LOCK = ".shards.lock"
"""In the corpus folder: held by who writes shards, copies them or forgets."""

_OURS = re.compile(r"^(train|val|test)-\d{6}\.tar(\.idx|\.index\.(npz|json))?$")
_HALF = re.compile(r"^\..+\.part$")


@dataclass(frozen=True)
class ShardSummary:
    """What stands now (`shards`, `samples`, `hours` by split) and what this run did. `undecided`: clips without decision."""

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
    """A tar that is whole but for its name, and what the manifest will say of it."""

    part: TarPart
    entry: ShardEntry


def write_shards(
    corpus: Corpus,
    config: ShardConfig,
    *,
    caption: Caption,
    on_progress: Callable[[int, int], None] | None = None,
    held: bool = False,
) -> ShardSummary:
    """Bring `shards/` in line with the decisions; doing it again does nothing. Many tars are written as Ray tasks.

    `on_progress(done, total)` is called for every tar; `held`: the caller holds the lock. Raises UserError where nothing was
    decided or kept, where a kept clip's media are missing or damaged, where another run is at work or a newer program was,
    and where the disk refuses; the manifest in force stays whole then.
    """
    started = time.monotonic()
    folder = corpus.root / "shards"
    require_decisions(corpus)
    lock = (
        nullcontext()
        if held
        else locked(corpus.root / SHARDS_LOCK, "another run writes shards here, copies them or forgets")
    )
    try:
        with lock:
            # read under the lock: what was forgotten before it was had is in no table
            planned = find_changes(corpus, kept_clips(corpus), config, caption=caption)
            folder.mkdir(exist_ok=True)
            _clear_halves(folder)
            _check_space(folder, planned)
            written = list(_write_all(folder, planned, caption, on_progress or (lambda done, total: None)))
            entries = sorted([*planned.kept, *written], key=lambda entry: entry.name)
            manifest = _manifest(corpus, config, entries)
            write_energon(
                folder, {split: [e for e in entries if e.split == split] for split in manifest["splits"]}
            )
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
        reused=len(planned.kept),
        removed=removed,
        undecided=planned.undecided,
        seconds=time.monotonic() - started,
        manifest=folder / "manifest.json",
    )


def _clear_halves(folder: Path) -> None:
    """Remove what a killed run left half written, before its room is needed."""
    for path in [*folder.iterdir(), *(folder / META_FOLDER).glob(".*")]:
        if _HALF.match(path.name):
            path.unlink()


def _check_space(folder: Path, planned: ShardChanges) -> None:
    needed = sum(sample.bytes for plan in planned.new for sample in plan.samples)
    free = shutil.disk_usage(folder).free
    if needed > free:
        text = f"the new shards take {needed / 1e6:.1f} MB, only {free / 1e6:.1f} MB are free"
        raise UserError(
            text, where=folder, hint="make room; old shards go after the new ones stand", kind="no-space"
        )


def write_shard(plan: NewShard) -> WrittenShard:
    """Write one tar under a name of its own beside its place. Raises UserError naming the clip whose media are at fault."""
    tar, index = shard_paths(plan.corpus / "shards", plan.name)
    planned = zip(plan.samples, plan.metas, strict=True)
    part = write_tar(tar, (_tar_sample(plan.corpus, sample, meta) for sample, meta in planned))
    seconds = round(sum(sample.seconds for sample in plan.samples), 3)
    licences, count = count_licences(plan.samples), len(part.spans)
    entry = ShardEntry(
        plan.name, plan.split, count, seconds, part.bytes, part.sha256, index.name, plan.inputs, licences
    )
    return WrittenShard(part, entry)


def _tar_sample(corpus: Path, planned: ShardSample, meta: str) -> TarSample:
    sample = _sample(corpus, meta)
    return TarSample(planned.key, to_members(sample), planned.seconds, *_picture_size(corpus, sample))


def _sample(corpus: Path, meta_json: str) -> Sample:
    """A sample with its media, as they stand in the corpus."""
    meta = SampleMeta.model_validate_json(meta_json)
    video, audio, face = (Corpus(corpus).media_path(meta.clip_id, extension) for extension in MEDIA)
    try:
        return Sample(meta, video.read_bytes(), audio.read_bytes(), FaceTrack.from_bytes(face.read_bytes()))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(corpus, meta.clip_id, error) from error


def _picture_size(corpus: Path, sample: Sample) -> tuple[int, int]:
    try:
        return frame_size(sample.video)
    except UserError as error:
        raise _damaged(corpus, sample.key, error) from error


def _damaged(corpus: Path, clip: str, error: Exception) -> UserError:
    where = Corpus(corpus).media_path(clip, MEDIA[0]).parent
    return UserError(
        f"media of clip {clip} are damaged: {error}",
        where=where,
        hint="remove them and run uniavgen ingest SOURCES --retry",
    )


def _write_all(
    folder: Path, planned: ShardChanges, caption: Caption, on_progress: Callable[[int, int], None]
) -> Iterator[ShardEntry]:
    """Entries of the new tars, each in its place; those that an interrupted run finished are taken as they are."""

    def filled(plan: NewShard) -> NewShard:
        rows = planned.clips.take([sample.row for sample in plan.samples])
        return replace(
            plan, metas=tuple(sample_meta(row, caption).model_dump_json() for row in clip_rows(rows))
        )

    total, done = len(planned.new), 0
    open_plans = []
    for plan in planned.new:
        entry = _finished(plan)
        if entry:
            done += 1
            on_progress(done, total)
            yield entry
        else:
            open_plans.append(plan)
    size = sum(sample.bytes for plan in open_plans for sample in plan.samples)
    for shard in map_unordered(write_shard, map(filled, open_plans), on_ray=worth_ray(len(open_plans), size)):
        put_in_place(folder, shard.part, shard.entry)
        done += 1
        on_progress(done, total)
        yield shard.entry


def _finished(plan: NewShard) -> ShardEntry | None:
    """The entry of a tar that stands whole under the plan's name with the plan's samples, None where there is none."""
    tar, index = shard_paths(plan.corpus / "shards", plan.name)
    try:
        entry = ShardEntry(**ShardIndex.from_bytes(index.read_bytes(), index).shard)
        same = entry.inputs == plan.inputs and tar.stat().st_size == entry.bytes
    except (OSError, UserError, TypeError):
        return None
    return replace(entry, licences=count_licences(plan.samples)) if same else None


def _manifest(corpus: Corpus, config: ShardConfig, entries: Sequence[ShardEntry]) -> dict[str, Any]:
    versions = corpus.versions()
    digests = corpus.read("decisions", columns=["policy_digest"])["policy_digest"].unique().to_pylist()
    splits = {}
    for split in sorted({entry.split for entry in entries}):
        own = [entry for entry in entries if entry.split == split]
        sums = {name: sum(getattr(entry, name) for entry in own) for name in ("samples", "seconds", "bytes")}
        splits[split] = {"shards": len(own), **sums}
    licences = sorted({name for entry in entries for name in entry.licences})
    return {
        "manifest_version": MANIFEST_VERSION,
        "schema_version": SCHEMA_VERSION,
        "tables": {name: versions[name] for name in ("sources", "clips", "decisions")},
        "policy_digest": digests[0] if digests else "",
        "layout": config.layout(),
        "splits": splits,
        "licences": {name: sum(entry.licences.get(name, 0) for entry in entries) for name in licences},
        "shards": [asdict(entry) for entry in entries],
    }


def _remove_stale(folder: Path, entries: Sequence[ShardEntry]) -> int:
    """Delete our files that the manifest does not name; returns how many tars went."""
    named = {name for entry in entries for name in (entry.name, f"{entry.name}.idx", index_name(entry.name))}
    stale = [path for path in folder.iterdir() if _OURS.match(path.name) and path.name not in named]
    for path in stale:
        path.unlink()
    return sum(path.suffix == ".tar" for path in stale)
