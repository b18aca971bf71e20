"""What the shard writer has to do: the kept clips, compared with the manifest in force.

In: the corpus tables, the media's sizes, a caption for each clip, and the shards that stand. Out: which shards stay, and
which samples go into which new tar. Nothing is written here.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from shards.corpus import SIGNALS, Corpus
from shards.errors import UserError
from shards.sample import SCHEMA_VERSION, SampleMeta

if TYPE_CHECKING:
    import pyarrow as pa

Caption = Callable[[Mapping[str, Any]], tuple[str, str]]
"""A clips row to its caption and the name of the model that made it."""

MANIFEST_VERSION = 1
MEDIA = ("mp4", "flac", "face.npz")


class ShardConfig(BaseModel):
    """How large shards are."""

    model_config = ConfigDict(extra="forbid")
    shard_mb: float = Field(default=512, gt=0, description="size that a shard aims at, in 10^6 bytes (field: 500 to 1000)")
    max_samples: int = Field(default=10_000, ge=1, description="most samples in a shard")


@dataclass(frozen=True)
class PlannedSample:
    """A sample to be: `fingerprint` changes with anything that would change its members."""

    key: str
    split: str
    row: int
    seconds: float
    bytes: int
    fingerprint: str


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
    """A shard as the manifest names it."""

    name: str
    split: str
    samples: int
    seconds: float
    bytes: int
    sha256: str
    index: str
    inputs: str


@dataclass(frozen=True)
class Planned:
    """What to do: shards that stay as they are, shards to write, how many clips have no decision; `clips` are the rows."""

    kept: tuple[ShardEntry, ...]
    new: tuple[ShardPlan, ...]
    undecided: int
    clips: pa.Table = field(repr=False)


def plan_shards(corpus: Corpus, config: ShardConfig, *, caption: Caption) -> Planned:
    """Compare the kept clips with the manifest in force. Raises UserError as `write_shards` does; writes nothing."""
    decisions = corpus.read("decisions", columns=["clip_id", "kept", "split"])
    if not len(decisions):
        raise UserError("nothing was decided yet", where=corpus.root, do="decide first: uniavgen curate", kind="no-decisions")
    clips = corpus.query(
        """SELECT clips.* EXCLUDE (voice), coalesce(sources.uri, '') AS source_uri, decisions.split
        FROM clips JOIN decisions USING (clip_id) LEFT JOIN sources USING (source_id) WHERE kept ORDER BY clip_id""",
        decisions=decisions,
    )
    if not len(clips):
        raise UserError(
            "the policy keeps no clip", where=corpus.root, do="see the report, loosen the policy", kind="nothing-kept"
        )
    wanted = {sample.key: sample for sample in _samples(corpus, clips, caption)}
    before = _manifest_in_force(corpus)
    same_config = before.get("config") == config.model_dump()
    listed = [ShardEntry(**entry) for entry in before.get("shards", ())]
    kept = [entry for entry in listed if same_config and _still_right(corpus.root / "shards", entry, wanted)]
    for entry in kept:
        for key in _keys(corpus.root / "shards", entry):
            del wanted[key]
    new: list[ShardPlan] = []
    for split in sorted({sample.split for sample in wanted.values()}):
        packs = pack([sample for sample in wanted.values() if sample.split == split], config)
        names = _free_names(split, {entry.name for entry in listed})
        new += [ShardPlan(name, split, corpus.root, tuple(pack)) for name, pack in zip(names, packs, strict=False)]
    known = set(decisions["clip_id"].to_pylist())
    undecided = sum(key not in known for key in corpus.read("clips", columns=["clip_id"])["clip_id"].to_pylist())
    return Planned(tuple(kept), tuple(new), undecided, clips)


def _samples(corpus: Corpus, clips: pa.Table, caption: Caption) -> Iterator[PlannedSample]:
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
        yield PlannedSample(row["clip_id"], row["split"], number, seconds, total, fingerprint)
    if missing:
        raise UserError(
            f"media of {len(missing)} kept clips are missing, first {missing[0]}",
            where=corpus.root / "media",
            do="ingest their sources again",
            kind="missing-media",
        )


def clip_rows(clips: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in clips.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def sample_meta(row: Mapping[str, Any], caption: Caption) -> SampleMeta:
    text, model = caption(row)
    signals = {name: row[name] if row[name] == row[name] else None for name in SIGNALS}
    span = {"start_s": row["start_s"], "end_s": row["end_s"]}
    names = {name: row[name] or "" for name in ("clip_id", "source_id", "source_uri", "speaker", "language", "transcript")}
    made = {"caption": text, "caption_model": model, "signals": signals, "versions": dict(row["versions"] or ())}
    return SampleMeta.model_validate({**span, **names, **made, "words": row["words"] or []})


def pack(samples: Sequence[PlannedSample], config: ShardConfig) -> list[list[PlannedSample]]:
    """Consecutive runs of samples of about equal bytes, none with more than `max_samples`."""
    total = sum(sample.bytes for sample in samples)
    shards = max(math.ceil(total / (config.shard_mb * 1e6)), math.ceil(len(samples) / config.max_samples))
    packs: list[list[PlannedSample]] = [[]]
    filled = 0
    for sample in samples:
        if packs[-1] and (filled >= len(packs) * total / shards or len(packs[-1]) >= config.max_samples):
            packs.append([])
        packs[-1].append(sample)
        filled += sample.bytes
    return packs


def _manifest_in_force(corpus: Corpus) -> dict[str, Any]:
    """The manifest that stands, {} where there is none that this program can read: everything is then written anew."""
    try:
        manifest: dict[str, Any] = json.loads((corpus.root / "shards" / "manifest.json").read_text())
        versions = (manifest["manifest_version"], manifest["schema_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return manifest if versions == (MANIFEST_VERSION, SCHEMA_VERSION) else {}


def _still_right(folder: Path, entry: ShardEntry, wanted: Mapping[str, PlannedSample]) -> bool:
    tar, _ = shard_paths(folder, entry.name)
    keys = _keys(folder, entry)
    if not keys or not tar.is_file() or tar.stat().st_size != entry.bytes or not wanted.keys() >= set(keys):
        return False
    samples = [wanted[key] for key in keys]
    return all(sample.split == entry.split for sample in samples) and inputs_digest(samples) == entry.inputs


def _keys(folder: Path, entry: ShardEntry) -> list[str]:
    try:
        return [sample["key"] for sample in json.loads((folder / entry.index).read_text())["samples"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def inputs_digest(samples: Iterable[PlannedSample]) -> str:
    return hashlib.sha256("".join(sample.fingerprint for sample in samples).encode()).hexdigest()


def shard_paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / name, folder / f"{name}.index.json"


def _free_names(split: str, taken: set[str]) -> Iterator[str]:
    return (name for name in (f"{split}-{number:06d}.tar" for number in count()) if name not in taken)
