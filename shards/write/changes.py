"""Compare the kept clips with the shards on disk: which shards stay, and which samples go to which new tar.

A shard stays, byte for byte, as long as every sample in it is still kept, unchanged and in the same split.
All other samples (new clips, and the rest of a shard that lost one) are spread over new tars, whose names the
current manifest does not use. So a clip that a new policy drops is in no tar afterwards, and appending
rewrites nothing. Many small appends leave small tars; another `shard.shard_mb` packs everything again.
Nothing is written here.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.shards.config import UNKNOWN_LICENCE, ShardConfig
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import SampleMeta
from uniavgen.shards.tar.manifest import Manifest, ShardEntry, read_manifest, read_shard_keys

if TYPE_CHECKING:
    import pyarrow as pa

CaptionFunction = Callable[[Mapping[str, Any]], tuple[str, str]]
"""A clips row to its caption and the name of the model that wrote it."""

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
MEDIA = ("mp4", "flac", "face.npz")
_TAR_BLOCK = 512
"""Bytes of a tar header; data is padded to a multiple of it."""


@dataclass(frozen=True)
class ShardSample:
    """A kept clip as a sample of a shard. `fingerprint` changes with everything that changes its members."""

    key: str
    split: str
    row: int
    seconds: float
    bytes: int
    fingerprint: str
    licence: str = UNKNOWN_LICENCE


@dataclass(frozen=True)
class NewShard:
    """A tar to write, samples in tar order. `metas`, their `.json` members, are added just before writing."""

    name: str
    split: str
    corpus: Path
    samples: tuple[ShardSample, ...]
    metas: tuple[str, ...] = field(default=(), repr=False)

    @property
    def inputs(self) -> str:
        """A hash that changes with anything that would change the tar."""
        return digest_of_inputs(self.samples)


@dataclass(frozen=True)
class ShardChanges:
    """Shards that stay, shards to write, the number of clips without a decision, and the rows of `clips`."""

    kept: tuple[ShardEntry, ...]
    new: tuple[NewShard, ...]
    undecided: int
    clips: pa.Table = field(repr=False)


def find_changes(
    corpus: Corpus, clips: pa.Table, config: ShardConfig, *, caption: CaptionFunction
) -> ShardChanges:
    """Compare the kept clips with the manifest on disk.

    Raises UserError for clips without media files, and for shards that a newer release wrote.
    """
    folder = corpus.root / "shards"
    samples = {sample.key: sample for sample in _shard_samples(corpus, clips, caption, config)}
    manifest = read_manifest(folder) or Manifest(current=False)
    kept = []
    for entry in manifest.entries if manifest.packing == config.packing() else ():
        keys = read_shard_keys(folder, entry)
        if _is_unchanged(folder, entry, keys, samples):
            kept.append(replace(entry, licences=count_licences([samples[key] for key in keys])))
            for key in keys:
                del samples[key]
    new: list[NewShard] = []
    for split in sorted({sample.split for sample in samples.values()}):
        packs = pack([sample for sample in samples.values() if sample.split == split], config)
        names = _unused_names(split, manifest.names)
        new += [
            NewShard(name, split, corpus.root, tuple(pack)) for name, pack in zip(names, packs, strict=False)
        ]
    undecided = corpus.query("SELECT count(*) AS n FROM clips ANTI JOIN decisions USING (clip_id)")
    return ShardChanges(tuple(kept), tuple(new), undecided["n"][0].as_py(), clips)


def require_decisions(corpus: Corpus) -> None:
    """Raise UserError if the decisions table is empty."""
    if not len(corpus.read("decisions", columns=["clip_id"])):
        raise UserError(
            "there are no decisions yet",
            where=corpus.root,
            hint="decide first: uniavgen curate",
            kind="no-decisions",
        )


def kept_clips(corpus: Corpus) -> pa.Table:
    """Read the kept clips with `source_uri` and `split`, sorted by id. Raises UserError if there are none."""
    require_decisions(corpus)
    columns = ", ".join(f"clips.{name}" for name in (*_CLIP_COLUMNS, *SIGNALS))
    clips = corpus.query(
        f"""SELECT {columns}, coalesce(sources.uri, '') AS source_uri, decisions.split
        FROM clips JOIN decisions USING (clip_id) LEFT JOIN sources USING (source_id)
        WHERE kept ORDER BY clip_id"""
    )
    if not len(clips):
        raise UserError(
            "the policy keeps no clip",
            where=corpus.root,
            hint="read the report, loosen the policy",
            kind="nothing-kept",
        )
    return clips


def clip_rows(clips: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table in batches, so that they are never all Python objects at once."""
    for batch in clips.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def sample_meta(row: Mapping[str, Any], caption: CaptionFunction) -> SampleMeta:
    """The `.json` member of a row of `kept_clips`."""
    text, model = caption(row)
    texts = ("clip_id", "source_id", "source_uri", "speaker", "language", "transcript")
    return SampleMeta.model_validate(
        {
            "start_s": row["start_s"],
            "end_s": row["end_s"],
            **{name: row[name] or "" for name in texts},
            "words": row["words"] or [],
            "caption": text,
            "caption_model": model,
            "signals": _sample_signals(row),
            "versions": dict(row["versions"] or ()),
        }
    )


def _sample_signals(row: Mapping[str, Any]) -> dict[str, float | None]:
    # NaN becomes None
    values = {name: row[name] if row[name] == row[name] else None for name in SIGNALS}
    return {name: value for name, value in values.items() if value is not None or not SIGNALS[name].added}


def pack(samples: Sequence[ShardSample], config: ShardConfig) -> list[list[ShardSample]]:
    """Spread samples over as few tars as possible, balanced in bytes in all and per length bucket.

    Longest processing time first: bucket by bucket, largest sample first, each sample goes to the tar with
    the fewest bytes of its bucket, of equal tars to the one with the fewest bytes in all. Samples in a tar
    are in order of their ids, which are hashes, so that a sequential reader gets them mixed.
    """
    import numpy as np

    total = sum(sample.bytes for sample in samples)
    tars = max(math.ceil(total / (config.shard_mb * 1e6)), math.ceil(len(samples) / config.max_samples))
    packs: list[list[ShardSample]] = [[] for _ in range(min(tars, len(samples)))]
    bytes_of_pack = [0] * len(packs)
    seconds, ones = np.array([sample.seconds for sample in samples]), np.ones(len(samples))
    buckets = config.buckets.of(seconds, ones, ones).tolist()
    for bucket in sorted(set(buckets), reverse=True):
        members = [sample for sample, its in zip(samples, buckets, strict=True) if its == bucket]
        # heap of (bytes of this bucket, bytes in all, number) of the packs with room
        emptiest = [
            (0, bytes_of_pack[number], number)
            for number in range(len(packs))
            if len(packs[number]) < config.max_samples
        ]
        heapq.heapify(emptiest)
        for sample in sorted(members, key=lambda sample: (-sample.bytes, sample.key)):
            bucket_bytes, _, number = heapq.heappop(emptiest)
            packs[number].append(sample)
            bytes_of_pack[number] += sample.bytes
            if len(packs[number]) < config.max_samples:
                heapq.heappush(emptiest, (bucket_bytes + sample.bytes, bytes_of_pack[number], number))
    return [sorted(one, key=lambda sample: sample.key) for one in packs]


def count_licences(samples: Iterable[ShardSample]) -> dict[str, int]:
    """Number of samples by licence, sorted by name."""
    return dict(sorted(Counter(sample.licence for sample in samples).items()))


def digest_of_inputs(samples: Iterable[ShardSample]) -> str:
    """SHA-256 over the fingerprints of the samples of a tar, in tar order."""
    return hashlib.sha256("".join(sample.fingerprint for sample in samples).encode()).hexdigest()


def _shard_samples(
    corpus: Corpus, clips: pa.Table, caption: CaptionFunction, config: ShardConfig
) -> Iterator[ShardSample]:
    """Yield every kept clip as a ShardSample. Raises UserError for clips without media files."""
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
        blocks = sum(1 + math.ceil(size / _TAR_BLOCK) for size in (*sizes, len(meta.encode())))
        licence = config.licence_of(row["source_uri"])
        yield ShardSample(
            row["clip_id"], row["split"], number, seconds, blocks * _TAR_BLOCK, fingerprint, licence
        )
    if missing:
        raise UserError(
            f"media of {len(missing)} kept clips are missing, first {missing[0]}",
            where=corpus.root / "media",
            hint="make them again: uniavgen ingest SOURCES --retry",
            kind="missing-media",
        )


def _is_unchanged(
    folder: Path, entry: ShardEntry, keys: list[str], samples: Mapping[str, ShardSample]
) -> bool:
    """True if a tar is complete and all of its samples are kept, unchanged and in its split."""
    tar = folder / entry.name
    if not keys or not tar.is_file() or tar.stat().st_size != entry.bytes:
        return False
    if not samples.keys() >= set(keys):
        return False
    inside = [samples[key] for key in keys]
    return all(sample.split == entry.split for sample in inside) and digest_of_inputs(inside) == entry.inputs


def _unused_names(split: str, taken: frozenset[str]) -> Iterator[str]:
    return (name for name in (f"{split}-{number:06d}.tar" for number in count()) if name not in taken)
