"""Corpus to shards: WebDataset tars, an index beside each for random access, and a manifest over all of them.

In: the clips that the decisions keep, their media, and a caption for each. Out, in the corpus folder:

    shards/{train,val}-000000.tar              samples in the order of their ids, members as `shards.sample` says
    shards/train-000000.tar.index.json         {"version": 1, "samples": [{"key", "offset", "length", "seconds"}], ...}
    shards/manifest.json                       what belongs to the corpus: versions, digest, and per shard counts and hash

Bytes [offset, offset + length) of a tar are all members of one sample. The same samples give the same bytes: owner,
rights and times in the tar are fixed. A shard whose samples did not change is left as it is, so appending writes new
shards only; new tars never take the name of one that the manifest in force knows, and stale ones go after the new
manifest stands. So a reader, or a run that is killed at any instant, always finds a manifest whose tars are there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from shards.cluster import ray_running
from shards.corpus import Corpus
from shards.errors import UserError
from shards.plan import (
    MANIFEST_VERSION,
    MEDIA,
    Caption,
    Planned,
    ShardConfig,
    ShardEntry,
    ShardPlan,
    clip_rows,
    plan_shards,
    sample_meta,
    shard_paths,
)
from shards.sample import SCHEMA_VERSION, FaceTrack, Sample, SampleMeta, to_members
from shards.stream import INDEX_VERSION

_START_RAY_BYTES = 256e6  # starting Ray takes as long as writing this much
_OURS = re.compile(r"^\.?(train|val)-\d{6}\.tar(\.index\.json)?(\.part)?$")


@dataclass(frozen=True)
class ShardSummary:
    """What stands now (`shards`, `samples`, `hours` by split) and what this run did. `undecided`: clips without decision."""

    shards: dict[str, int]
    samples: dict[str, int]
    hours: dict[str, float]
    bytes: int
    written: int
    reused: int
    removed: int
    undecided: int
    seconds: float
    manifest: Path


def write_shards(
    corpus: Corpus, config: ShardConfig, *, caption: Caption, on_progress: Callable[[int, int], None] | None = None
) -> ShardSummary:
    """Bring `shards/` in line with the decisions; doing it again does nothing. Many tars are written as Ray tasks.

    `on_progress(done, total)` is called for every tar. Raises UserError where nothing was decided or kept, where a kept
    clip's media are missing or damaged, and where the disk refuses; the manifest in force stays whole then.
    """
    started = time.monotonic()
    planned = plan_shards(corpus, config, caption=caption)
    folder = corpus.root / "shards"
    try:
        folder.mkdir(exist_ok=True)
        written = list(_write_all(planned, caption, on_progress or (lambda done, total: None)))
        entries = sorted([*planned.kept, *written], key=lambda entry: entry.name)
        manifest = _manifest(corpus, config, entries)
        _replace_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        removed = _remove_stale(folder, entries)
    except OSError as error:
        do = "check rights and space, then run it again"
        raise UserError(f"shards cannot be written: {error.strerror or error}", where=folder, do=do) from error
    totals = manifest["splits"]
    return ShardSummary(
        shards={split: total["shards"] for split, total in totals.items()},
        samples={split: total["samples"] for split, total in totals.items()},
        hours={split: total["seconds"] / 3600 for split, total in totals.items()},
        bytes=sum(entry.bytes for entry in entries),
        written=len(written),
        reused=len(planned.kept),
        removed=removed,
        undecided=planned.undecided,
        seconds=time.monotonic() - started,
        manifest=folder / "manifest.json",
    )


def write_shard(plan: ShardPlan) -> ShardEntry:
    """Write one tar and its index, each by rename; a tar that an interrupted run finished is taken as it is.

    Raises UserError naming the clip whose media are missing or damaged.
    """
    from webdataset import TarWriter

    tar, index = shard_paths(plan.corpus / "shards", plan.name)
    entry = _finished(plan)
    if entry:
        return entry
    index.unlink(missing_ok=True)
    part = tar.with_name(f".{tar.name}.part")
    spans = []
    with part.open("wb") as out:
        with TarWriter(out, user="", group="", mode=0o644, mtime=0, encoder=False) as writer:
            for planned, meta in zip(plan.samples, plan.metas, strict=True):
                start = writer.tarstream.offset
                writer.write({"__key__": planned.key, **to_members(_sample(plan.corpus, meta))})
                span = {"key": planned.key, "offset": start, "length": writer.tarstream.offset - start}
                spans.append({**span, "seconds": planned.seconds})
        out.flush()
        os.fsync(out.fileno())
    with part.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    os.replace(part, tar)
    seconds = sum(sample.seconds for sample in plan.samples)
    entry = ShardEntry(plan.name, plan.split, len(spans), seconds, tar.stat().st_size, digest, index.name, plan.inputs)
    _replace_text(index, json.dumps({"version": INDEX_VERSION, "samples": spans, "shard": vars(entry)}) + "\n")
    return entry


def _sample(corpus: Path, meta_json: str) -> Sample:
    """A sample with its media, as they stand in the corpus."""
    meta = SampleMeta.model_validate_json(meta_json)
    video, audio, face = (Corpus(corpus).media_path(meta.clip_id, extension) for extension in MEDIA)
    try:
        return Sample(meta, video.read_bytes(), audio.read_bytes(), FaceTrack.from_bytes(face.read_bytes()))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        do = "ingest its source again"
        raise UserError(f"media of clip {meta.clip_id} are damaged: {error}", where=face.parent, do=do) from error


def _write_all(planned: Planned, caption: Caption, on_progress: Callable[[int, int], None]) -> Iterator[ShardEntry]:
    """Write the new tars: as Ray tasks with no more in flight than can run soon, a single or a small lot in this process."""

    def filled(plan: ShardPlan) -> ShardPlan:
        rows = planned.clips.take([sample.row for sample in plan.samples])
        return replace(plan, metas=tuple(sample_meta(row, caption).model_dump_json() for row in clip_rows(rows)))

    total = len(planned.new)
    if not _worth_ray(planned):
        for number, plan in enumerate(planned.new, start=1):
            yield write_shard(filled(plan))
            on_progress(number, total)
        return
    import ray

    with ray_running():
        task = ray.remote(num_cpus=1)(write_shard)
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        plans, done = iter(planned.new), 0
        pending: list[Any] = []
        try:
            while done < total:
                pending += [task.remote(filled(plan)) for plan in islice(plans, limit - len(pending))]
                ready, pending = ray.wait(pending)
                for entry in ray.get(ready):
                    done += 1
                    on_progress(done, total)
                    yield entry
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError | OSError) else error) from error
        finally:
            for reference in pending:
                ray.cancel(reference)


def _worth_ray(planned: Planned) -> bool:
    if len(planned.new) <= 1:
        return False
    import ray

    size = sum(sample.bytes for plan in planned.new for sample in plan.samples)
    return ray.is_initialized() or size >= _START_RAY_BYTES


def _manifest(corpus: Corpus, config: ShardConfig, entries: Sequence[ShardEntry]) -> dict[str, Any]:
    versions = corpus.versions()
    digests = corpus.read("decisions", columns=["policy_digest"])["policy_digest"].unique().to_pylist()
    splits = {}
    for split in sorted({entry.split for entry in entries}):
        own = [entry for entry in entries if entry.split == split]
        sums = {name: sum(getattr(entry, name) for entry in own) for name in ("samples", "seconds", "bytes")}
        splits[split] = {"shards": len(own), **sums}
    return {
        "manifest_version": MANIFEST_VERSION,
        "schema_version": SCHEMA_VERSION,
        "tables": {name: versions[name] for name in ("sources", "clips", "decisions")},
        "policy_digest": digests[0] if digests else "",
        "config": config.model_dump(),
        "splits": splits,
        "shards": [vars(entry) for entry in entries],
    }


def _finished(plan: ShardPlan) -> ShardEntry | None:
    """The entry of a tar that stands whole under the plan's name with the plan's samples, None where there is none."""
    tar, index = shard_paths(plan.corpus / "shards", plan.name)
    try:
        entry = ShardEntry(**json.loads(index.read_text())["shard"])
        same = entry.inputs == plan.inputs and tar.stat().st_size == entry.bytes
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if same else None


def _remove_stale(folder: Path, entries: Sequence[ShardEntry]) -> int:
    """Delete our files that the manifest does not name; returns how many tars went."""
    named = {entry.name for entry in entries} | {entry.index for entry in entries}
    stale = [path for path in folder.iterdir() if _OURS.match(path.name) and path.name not in named]
    for path in stale:
        path.unlink()
    return sum(path.suffix == ".tar" for path in stale)


def _replace_text(path: Path, text: str) -> None:
    if path.is_file() and path.read_text() == text:
        return
    part = path.with_name(f".{path.name}.part")
    part.write_text(text)
    os.replace(part, path)
