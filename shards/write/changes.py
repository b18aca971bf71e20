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
from uniavgen.shards.tar.index import index_name
from uniavgen.shards.tar.manifest import Manifest, ShardEntry, read_manifest, read_shard_keys

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
MEDIA = ("mp4", "flac", "face.npz")


@dataclass(frozen=True)
class ShardSample:
    """A sample to be: `fingerprint` changes with anything that would change its members."""

    key: str
    split: str
    row: int
    seconds: float
    bytes: int
    fingerprint: str
    licence: str = UNKNOWN_LICENCE


@dataclass(frozen=True)
class NewShard:
    """A tar to be, samples in tar order. `metas` (their `.json` members) are filled in just before writing."""

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
    """What to do: shards that stay as they are, shards to write, how many clips have no decision; `clips` are the rows."""

    kept: tuple[ShardEntry, ...]
    new: tuple[NewShard, ...]
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


def find_changes(corpus: Corpus, clips: pa.Table, config: ShardConfig, *, caption: Caption) -> ShardChanges:
    """Compare the kept clips with the manifest in force. Writes nothing.

    Raises UserError naming clips whose media are not there, and for shards that a newer program wrote.
    """
    wanted = {sample.key: sample for sample in _samples(corpus, clips, caption, config)}
    before = read_manifest(corpus.root / "shards") or Manifest(current=False)
    kept = []
    for entry in before.entries if before.layout == config.layout() else ():
        keys = read_shard_keys(corpus.root / "shards", entry)
        if _still_right(corpus.root / "shards", entry, keys, wanted):
            kept.append(replace(entry, licences=count_licences([wanted[key] for key in keys])))
            for key in keys:
                del wanted[key]
    new: list[NewShard] = []
    for split in sorted({sample.split for sample in wanted.values()}):
        packs = pack([sample for sample in wanted.values() if sample.split == split], config)
        names = _free_names(split, before.names)
        new += [
            NewShard(name, split, corpus.root, tuple(pack)) for name, pack in zip(names, packs, strict=False)
        ]
    undecided = corpus.query("SELECT count(*) AS n FROM clips ANTI JOIN decisions USING (clip_id)")["n"][
        0
    ].as_py()
    return ShardChanges(tuple(kept), tuple(new), undecided, clips)


def _samples(corpus: Corpus, clips: pa.Table, caption: Caption, config: ShardConfig) -> Iterator[ShardSample]:
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
        yield ShardSample(row["clip_id"], row["split"], number, seconds, total, fingerprint, licence)
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


def pack(samples: Sequence[ShardSample], config: ShardConfig) -> list[list[ShardSample]]:
    """Samples spread over as few tars as the settings allow, alike in bytes and in the bytes of every duration bucket.

    Bucket by bucket, the largest sample first, each goes to the tar that has least of its bucket (longest processing time
    first), of tars alike to the one that has least in all. Within a tar samples stand in the order of their ids, which are
    hashes: a plain reader finds them mixed.
    """
    import numpy as np

    total = sum(sample.bytes for sample in samples)
    tars = max(math.ceil(total / (config.shard_mb * 1e6)), math.ceil(len(samples) / config.max_samples))
    packs: list[list[ShardSample]] = [[] for _ in range(min(tars, len(samples)))]
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


def count_licences(samples: Iterable[ShardSample]) -> dict[str, int]:
    """Samples by licence, sorted by name."""
    return dict(sorted(Counter(sample.licence for sample in samples).items()))


def _still_right(folder: Path, entry: ShardEntry, keys: list[str], wanted: Mapping[str, ShardSample]) -> bool:
    tar = folder / entry.name
    if not keys or not tar.is_file() or tar.stat().st_size != entry.bytes or not wanted.keys() >= set(keys):
        return False
    samples = [wanted[key] for key in keys]
    return (
        all(sample.split == entry.split for sample in samples) and digest_of_inputs(samples) == entry.inputs
    )


def digest_of_inputs(samples: Iterable[ShardSample]) -> str:
    return hashlib.sha256("".join(sample.fingerprint for sample in samples).encode()).hexdigest()


def shard_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """A tar and its index."""
    return folder / name, folder / index_name(name)


def _free_names(split: str, taken: frozenset[str]) -> Iterator[str]:
    return (name for name in (f"{split}-{number:06d}.tar" for number in count()) if name not in taken)
