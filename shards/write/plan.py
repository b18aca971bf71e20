"""What the shard writer has to do: the kept clips, compared with the manifest in force.

In: the corpus tables, the media's sizes, a caption for each clip, and the shards that stand. Out: which shards stay, and
which samples go into which new tar. Nothing is written here.

The rule, for a corpus that grows and for policies that change: a shard stays, byte for byte, as long as every sample in it
is still kept, on the same side and unchanged. Samples that are in no such shard (new clips, and what is left of a shard
that lost one) are spread over new tars whose names the manifest in force does not know. So a clip that a new policy drops is
in no tar afterwards, whoever reads it, and appending rewrites nothing. Many small appends leave small tars: another
`shard.shard_mb` packs everything anew.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from uniavgen.shards.buckets import Buckets
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import SCHEMA_VERSION, SampleMeta
from uniavgen.shards.tar.index import MANIFEST_VERSION, ShardIndex, index_name

if TYPE_CHECKING:
    import pyarrow as pa

Caption = Callable[[Mapping[str, Any]], tuple[str, str]]
"""A clips row to its caption and the name of the model that made it."""

_CLIP_COLUMNS = (
    "clip_id",
    "source_id",
    "start_s",
    "end_s",
    "speaker",
    "language",
    "transcript",
    "words",
    "versions",
)
UNKNOWN_LICENCE = "unknown"
MEDIA = ("mp4", "flac", "face.npz")


class ShardConfig(BaseModel):
    """How large shards are and what they are mixed of; what to verify; what licences sources have."""

    model_config = ConfigDict(extra="forbid")
    shard_mb: float = Field(
        default=512, gt=0, description="size that a shard aims at, in 10^6 bytes (field: 500 to 1000)"
    )
    max_samples: int = Field(default=10_000, ge=1, description="most samples in a shard")
    buckets: Buckets = Field(
        default_factory=Buckets, description="lengths of which every shard holds its share"
    )
    licences: dict[str, str] = Field(
        default_factory=dict,
        description="patterns of source URIs to licences, first match counts: {'/cc/*': CC-BY-4.0}",
    )
    verify_decodes: int = Field(
        default=20, ge=0, description="samples that --verify decodes (our choice), spread over all shards"
    )

    def layout(self) -> dict[str, Any]:
        """The settings that decide what is in which tar; with others the shards that stand remain right."""
        return self.model_dump(mode="json", include={"shard_mb", "max_samples", "buckets"})

    def licence(self, uri: str) -> str:
        """The licence of a source by its URI, `unknown` where no pattern names it."""
        return next(
            (name for pattern, name in self.licences.items() if fnmatchcase(uri, pattern)), UNKNOWN_LICENCE
        )


@dataclass(frozen=True)
class PlannedSample:
    """A sample to be: `fingerprint` changes with anything that would change its members."""

    key: str
    split: str
    row: int
    seconds: float
    bytes: int
    fingerprint: str
    licence: str = UNKNOWN_LICENCE


@dataclass(frozen=True)
class ShardPlan:
    """A tar to be, samples in tar order. `metas` (their `.json` members) are filled in just before writing."""

    name: str
    split: str
    corpus: Path
    samples: tuple[PlannedSample, ...]
    metas: tuple[str, ...] = field(default=(), repr=False)

    @property
    def inputs(self) -> str:
        """A hash that changes with anything that would change the tar."""
        return inputs_digest(self.samples)


@dataclass(frozen=True)
class ShardEntry:
    """A shard as the manifest names it; `licences` counts its samples by the licence of their source."""

    name: str
    split: str
    samples: int
    seconds: float
    bytes: int
    sha256: str
    index: str
    inputs: str
    licences: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """The manifest that stands: names of its tars, and, where it is of this program's version, what it says of them."""

    current: bool
    names: frozenset[str] = frozenset()
    entries: tuple[ShardEntry, ...] = ()
    layout: dict[str, Any] | None = None


@dataclass(frozen=True)
class Planned:
    """What to do: shards that stay as they are, shards to write, how many clips have no decision; `clips` are the rows."""

    kept: tuple[ShardEntry, ...]
    new: tuple[ShardPlan, ...]
    undecided: int
    clips: pa.Table = field(repr=False)


def require_decisions(corpus: Corpus) -> None:
    """Raises UserError where nothing was decided yet."""
    if not len(corpus.read("decisions", columns=["clip_id"])):
        raise UserError(
            "nothing was decided yet",
            where=corpus.root,
            hint="decide first: uniavgen curate",
            kind="no-decisions",
        )


def kept_clips(corpus: Corpus) -> pa.Table:
    """The clips that the decisions keep, with `source_uri` and `split`, by id. Raises UserError where there are none."""
    require_decisions(corpus)
    columns = ", ".join(f"clips.{name}" for name in (*_CLIP_COLUMNS, *SIGNALS))
    clips = corpus.query(
        f"""SELECT {columns}, coalesce(sources.uri, '') AS source_uri, decisions.split
        FROM clips JOIN decisions USING (clip_id) LEFT JOIN sources USING (source_id) WHERE kept ORDER BY clip_id"""
    )
    if not len(clips):
        raise UserError(
            "the policy keeps no clip",
            where=corpus.root,
            hint="see the report, loosen the policy",
            kind="nothing-kept",
        )
    return clips


def plan_shards(corpus: Corpus, clips: pa.Table, config: ShardConfig, *, caption: Caption) -> Planned:
    """Compare the kept clips with the manifest in force. Writes nothing.

    Raises UserError naming clips whose media are not there, and for shards that a newer program wrote.
    """
    wanted = {sample.key: sample for sample in _samples(corpus, clips, caption, config)}
    before = manifest_in_force(corpus.root / "shards") or Manifest(current=False)
    kept = []
    for entry in before.entries if before.layout == config.layout() else ():
        keys = shard_keys(corpus.root / "shards", entry)
        if _still_right(corpus.root / "shards", entry, keys, wanted):
            kept.append(replace(entry, licences=licence_counts([wanted[key] for key in keys])))
            for key in keys:
                del wanted[key]
    new: list[ShardPlan] = []
    for split in sorted({sample.split for sample in wanted.values()}):
        packs = pack([sample for sample in wanted.values() if sample.split == split], config)
        names = _free_names(split, before.names)
        new += [
            ShardPlan(name, split, corpus.root, tuple(pack)) for name, pack in zip(names, packs, strict=False)
        ]
    undecided = corpus.query("SELECT count(*) AS n FROM clips ANTI JOIN decisions USING (clip_id)")["n"][
        0
    ].as_py()
    return Planned(tuple(kept), tuple(new), undecided, clips)


def _samples(
    corpus: Corpus, clips: pa.Table, caption: Caption, config: ShardConfig
) -> Iterator[PlannedSample]:
    """Every kept clip as a planned sample. Raises UserError naming the clips whose media are not there."""
    missing = []
    for number, row in enumerate(clip_rows(clips)):
        sizes = []
        for extension in MEDIA:
            path = corpus.media_path(row["clip_id"], extension)
            sizes.append(path.stat().st_size if path.is_file() else -1)
        if -1 in sizes:
            missing.append(f"{row['clip_id']}.{MEDIA[sizes.index(-1)]}")
            continue
        meta = sample_meta(row, caption).model_dump_json()
        fingerprint = hashlib.sha256(f"{meta}{sizes}".encode()).hexdigest()
        seconds = round(row["end_s"] - row["start_s"], 3)
        total = sum(512 + 512 * math.ceil(size / 512) for size in (*sizes, len(meta.encode())))
        licence = config.licence(row["source_uri"])
        yield PlannedSample(row["clip_id"], row["split"], number, seconds, total, fingerprint, licence)
    if missing:
        raise UserError(
            f"media of {len(missing)} kept clips are missing, first {missing[0]}",
            where=corpus.root / "media",
            hint="make them again: uniavgen ingest SOURCES --retry",
            kind="missing-media",
        )


def clip_rows(clips: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in clips.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def sample_meta(row: Mapping[str, Any], caption: Caption) -> SampleMeta:
    text, model = caption(row)
    signals = {name: row[name] if row[name] == row[name] else None for name in SIGNALS}
    span = {"start_s": row["start_s"], "end_s": row["end_s"]}
    names = {
        name: row[name] or ""
        for name in ("clip_id", "source_id", "source_uri", "speaker", "language", "transcript")
    }
    made = {
        "caption": text,
        "caption_model": model,
        "signals": signals,
        "versions": dict(row["versions"] or ()),
    }
    return SampleMeta.model_validate({**span, **names, **made, "words": row["words"] or []})


def pack(samples: Sequence[PlannedSample], config: ShardConfig) -> list[list[PlannedSample]]:
    """Samples spread over as few tars as the settings allow, alike in bytes and in the bytes of every duration bucket.

    Bucket by bucket, the largest sample first, each goes to the tar that has least of its bucket (longest processing time
    first), of tars alike to the one that has least in all. Within a tar samples stand in the order of their ids, which are
    hashes: a plain reader finds them mixed.
    """
    import numpy as np

    total = sum(sample.bytes for sample in samples)
    tars = max(math.ceil(total / (config.shard_mb * 1e6)), math.ceil(len(samples) / config.max_samples))
    packs: list[list[PlannedSample]] = [[] for _ in range(min(tars, len(samples)))]
    filled = [0] * len(packs)
    seconds = np.array([sample.seconds for sample in samples])
    bucket = config.buckets.of(seconds, np.ones(len(samples)), np.ones(len(samples))).tolist()
    for name in sorted(set(bucket), reverse=True):
        members = [sample for sample, its in zip(samples, bucket, strict=True) if its == name]
        least = [
            (0, filled[number], number)
            for number in range(len(packs))
            if len(packs[number]) < config.max_samples
        ]
        heapq.heapify(least)
        for sample in sorted(members, key=lambda sample: (-sample.bytes, sample.key)):
            own, _, number = heapq.heappop(least)
            packs[number].append(sample)
            filled[number] += sample.bytes
            if len(packs[number]) < config.max_samples:
                heapq.heappush(least, (own + sample.bytes, filled[number], number))
    return [sorted(one, key=lambda sample: sample.key) for one in packs]


def manifest_in_force(folder: Path) -> Manifest | None:
    """The manifest that stands in a `shards` folder, None where there is none or it is damaged.

    Raises UserError of kind `wrong-version` for one from a newer program, which must not be written over.
    """
    try:
        content = json.loads((folder / "manifest.json").read_text())
        versions = int(content["manifest_version"]), int(content["schema_version"])
        current = versions == (MANIFEST_VERSION, SCHEMA_VERSION)
        entries = tuple(ShardEntry(**entry) for entry in content["shards"]) if current else ()
        names = frozenset(str(entry["name"]) for entry in content["shards"])
        manifest = Manifest(current, names, entries, content.get("layout"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if versions[0] > MANIFEST_VERSION or versions[1] > SCHEMA_VERSION:
        raise UserError(
            f"these shards are of version {versions[0]}.{versions[1]}, this program knows {MANIFEST_VERSION}.{SCHEMA_VERSION}",
            where=folder,
            hint="use the matching release of uniavgen, or move them away",
            kind="wrong-version",
        )
    return manifest


def licence_counts(samples: Iterable[PlannedSample]) -> dict[str, int]:
    """Samples by licence, sorted by name."""
    return dict(sorted(Counter(sample.licence for sample in samples).items()))


def _still_right(
    folder: Path, entry: ShardEntry, keys: list[str], wanted: Mapping[str, PlannedSample]
) -> bool:
    tar = folder / entry.name
    if not keys or not tar.is_file() or tar.stat().st_size != entry.bytes or not wanted.keys() >= set(keys):
        return False
    samples = [wanted[key] for key in keys]
    return all(sample.split == entry.split for sample in samples) and inputs_digest(samples) == entry.inputs


def shard_keys(folder: Path, entry: ShardEntry) -> list[str]:
    """Keys of a shard's samples in tar order, none where its index is missing, damaged or of another version."""
    try:
        return ShardIndex.from_bytes((folder / entry.index).read_bytes()).sample_keys()
    except (OSError, UserError):
        return []


def inputs_digest(samples: Iterable[PlannedSample]) -> str:
    return hashlib.sha256("".join(sample.fingerprint for sample in samples).encode()).hexdigest()


def shard_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """A tar and its index."""
    return folder / name, folder / index_name(name)


def _free_names(split: str, taken: frozenset[str]) -> Iterator[str]:
    return (name for name in (f"{split}-{number:06d}.tar" for number in count()) if name not in taken)
