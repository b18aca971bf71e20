"""Verify a `shards` folder against its manifest: open, hash and count everything, decode some samples.

Gives one line per defect, and changes nothing.
"""

from __future__ import annotations

import tarfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from uniavgen.shards.cluster import map_unordered, worth_ray
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.verify import SidecarCheck, latent_checks, verify_sidecar
from uniavgen.shards.sample import REQUIRED_MEMBERS, Sample, decode_audio, decode_video, from_members
from uniavgen.shards.tar.index import ShardIndex
from uniavgen.shards.tar.manifest import ShardEntry, read_manifest
from uniavgen.shards.tar.tar_reader import member_problem, read_members, read_span, size_and_digest
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS
from uniavgen.shards.write.energon import META_FOLDER, energon_texts

REPAIR = "remove it and run uniavgen shard"
LENGTH_TOLERANCE_S = 2 / VIDEO_FPS
"""Largest difference in length between audio, video and the clip's span: rounding to frames at both ends."""


@dataclass(frozen=True)
class VerifySummary:
    """Counts of what was opened (`sidecars`: of cached latents), and one line per defect, sorted by file."""

    shards: int
    sidecars: int
    samples: int
    decoded: int
    bytes: int
    defects: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class ShardCheck:
    """One tar to open, its entry of the manifest, and the index rows of the samples to decode."""

    folder: Path
    entry: ShardEntry
    decode: tuple[int, ...]


@dataclass(frozen=True)
class CheckedShard:
    """Content and defects of a tar."""

    name: str
    split: str
    keys: tuple[str, ...]
    decoded: int
    bytes: int
    defects: tuple[str, ...]


def verify_shards(
    corpus: Corpus, config: ShardConfig, *, on_progress: Callable[[int, int], None] | None = None
) -> VerifySummary:
    """Open every shard, many of them as Ray tasks, and compare them with the manifest and the decisions.

    Raises UserError if there is no manifest that this program reads. Every other fault is a line in
    `defects`.
    """
    started = time.monotonic()
    folder = corpus.root / "shards"
    manifest = read_manifest(folder)
    if not manifest:
        raise UserError("no shards here", where=folder, hint="write them: uniavgen shard", kind="no-shards")
    if not manifest.current:
        raise UserError(
            "the shards have an older version",
            where=folder,
            hint="run uniavgen shard",
            kind="wrong-version",
        )
    entries = manifest.entries
    checks = list(_shard_checks(folder, entries, config.verify_decodes))
    sidecars, latent_defects = latent_checks(folder, {entry.name: entry for entry in entries})
    total_bytes = sum(entry.bytes for entry in entries) + sum(check.entry.bytes for check in sidecars)
    todo: list[ShardCheck | SidecarCheck] = [*checks, *sidecars]
    checked: list[CheckedShard] = []
    for number, result in enumerate(
        map_unordered(_verify, todo, on_ray=worth_ray(len(todo), total_bytes)), start=1
    ):
        if isinstance(result, CheckedShard):
            checked.append(result)
        else:
            latent_defects += result
        if on_progress:
            on_progress(number, len(todo))
    checked.sort(key=lambda shard: shard.name)
    defects = [defect for shard in checked for defect in shard.defects]
    defects += [
        *_against_decisions(corpus, checked),
        *_against_folder(folder, entries),
        *sorted(latent_defects),
    ]
    return VerifySummary(
        shards=len(checked),
        sidecars=len(sidecars),
        samples=sum(len(shard.keys) for shard in checked),
        decoded=sum(shard.decoded for shard in checked),
        bytes=sum(shard.bytes for shard in checked),
        defects=tuple(defects),
        seconds=time.monotonic() - started,
    )


def _verify(check: ShardCheck | SidecarCheck) -> CheckedShard | tuple[str, ...]:
    return verify_shard(check) if isinstance(check, ShardCheck) else verify_sidecar(check)


def _shard_checks(folder: Path, entries: Sequence[ShardEntry], decodes: int) -> Iterator[ShardCheck]:
    """A check of every tar; the samples to decode are spread evenly over all of them."""
    total = sum(entry.samples for entry in entries)
    chosen = (
        [number * total // decodes for number in range(min(decodes, total))]
        if decodes < total
        else list(range(total))
    )
    first = 0
    for entry in entries:
        inside = tuple(number - first for number in chosen if first <= number < first + entry.samples)
        yield ShardCheck(folder, entry, inside)
        first += entry.samples


def verify_shard(check: ShardCheck) -> CheckedShard:
    """Open one tar. Defects are returned, never raised."""
    entry, tar = check.entry, check.folder / check.entry.name
    defects: list[str] = []
    keys, decoded, size = list[str](), 0, 0
    try:
        size, digest = size_and_digest(tar)
        if size != entry.bytes:
            defects.append(f"{entry.name}: {size} bytes, the manifest says {entry.bytes}; {REPAIR}")
        elif digest != entry.sha256:
            defects.append(f"{entry.name}: its SHA-256 differs from the manifest; {REPAIR}")
        index = ShardIndex.from_bytes((check.folder / entry.index).read_bytes(), entry.index)
        keys = index.sample_keys()
        if len(keys) != entry.samples:
            defects.append(f"{entry.index}: {len(keys)} samples, the manifest says {entry.samples}; {REPAIR}")
        idx = tar.with_name(f"{tar.name}.idx")
        if not idx.is_file() or idx.read_bytes() != index.to_energon():
            defects.append(f"{idx.name}: missing or different from the index; run uniavgen shard")
        problems = dict(_sample_problems(tar, index))
        defects += [f"{entry.name}: sample {key}: {problem}" for key, problem in problems.items()]
        for row in check.decode:
            if row < len(index) and keys[row] not in problems:
                decoded += 1
                defects += [f"{entry.name}: {problem}" for problem in _decode_problems(tar, index, row)]
    except FileNotFoundError as error:
        defects.append(f"{Path(str(error.filename)).name}: missing; run uniavgen shard")
    except (OSError, UserError, tarfile.TarError) as error:
        defects.append(f"{entry.name}: {error}")
    return CheckedShard(entry.name, entry.split, tuple(keys), decoded, size, tuple(defects))


def _sample_problems(tar: Path, index: ShardIndex) -> Iterator[tuple[str, str]]:
    """(key, problem) of every sample whose bytes or members differ from the index."""
    with tar.open("rb") as file:
        for row, key in enumerate(index.sample_keys()):
            span = read_span(file, index, row)
            if len(span) != index.length[row]:
                yield key, "the tar ends inside it"
                return
            if zlib.crc32(span) != index.crc32[row]:
                yield key, "its bytes changed since they were written"
                continue
            try:
                sizes = {name: len(data) for name, data in read_members(span, key).items()}
            except UserError as error:
                yield key, error.what
                continue
            if missing := set(REQUIRED_MEMBERS) - set(sizes):
                yield key, f"lacks {', '.join(sorted(missing))}"
            elif sizes != dict(zip(index.members, index.sizes[row].tolist(), strict=True)):
                yield key, "the sizes of its members differ from the index"
    with tarfile.open(tar, mode="r:") as opened:  # read it sequentially, without the index
        names = []
        for member in opened:
            names.append(member.name)
            if problem := member_problem(member):
                yield member.name.partition(".")[0], problem
    expected = [f"{key}.{name}" for key in index.sample_keys() for name in index.members]
    if names != expected:
        yield (
            next((a for a, b in zip(names, expected, strict=False) if a != b), "?"),
            "the tar holds other members than its index",
        )


def _decode_problems(tar: Path, index: ShardIndex, row: int) -> Iterator[str]:
    """What is wrong with the media of one sample."""
    key = index.sample_keys()[row]
    try:
        with tar.open("rb") as file:
            sample = from_members({"__key__": key, **read_members(read_span(file, index, row), key)})
        yield from (
            f"sample {key}: {problem}" for problem in _media_problems(sample, float(index.seconds[row]))
        )
    except UserError as error:
        yield error.what
    except Exception as error:  # decoders raise many kinds of errors
        yield f"sample {key} cannot be decoded: {' '.join(str(error).split())[:200]}"


def _media_problems(sample: Sample, seconds: float) -> Iterator[str]:
    """Differences in length between video, audio, face and span."""
    frames = len(decode_video(sample.video))
    lengths_s = {
        "video": frames / VIDEO_FPS,
        "audio": len(decode_audio(sample.audio)) / SAMPLE_RATE,
    }
    if len(sample.face.score) != frames:
        yield f"{frames} video frames, but {len(sample.face.score)} face frames"
    for name, length_s in lengths_s.items():
        if abs(length_s - seconds) > LENGTH_TOLERANCE_S:
            yield f"{name} of {length_s:.2f} s, but a span of {seconds:.2f} s"


def _against_decisions(corpus: Corpus, shards: Sequence[CheckedShard]) -> Iterator[str]:
    """Samples that the decisions do not keep, and kept clips that are in no shard or in several."""
    rows = corpus.query(
        "SELECT clip_id, split FROM decisions JOIN clips USING (clip_id) WHERE kept"
    ).to_pylist()
    split_of = {row["clip_id"]: row["split"] for row in rows}
    times = Counter(key for shard in shards for key in shard.keys)
    for shard in shards:
        yield from _misplaced(shard, split_of)
    for key in sorted(key for key, count in times.items() if count > 1):
        yield f"sample {key}: is in {times[key]} shards; run uniavgen shard"
    missing = sorted(split_of.keys() - times.keys())
    if missing:
        yield (
            f"decisions: {len(missing)} of {len(split_of)} kept clips are in no shard, first {missing[0]}; "
            "run uniavgen shard"
        )


def _misplaced(shard: CheckedShard, split_of: Mapping[str, str]) -> Iterator[str]:
    for key in shard.keys:
        if key not in split_of:
            yield f"{shard.name}: sample {key}: the decisions do not keep it; run uniavgen shard"
        elif split_of[key] != shard.split:
            yield f"{shard.name}: sample {key}: the decisions put it into {split_of[key]}; run uniavgen shard"


def _against_folder(folder: Path, entries: Sequence[ShardEntry]) -> Iterator[str]:
    """Tars that the manifest does not name, and wrong index files of Megatron-Energon."""
    named = {entry.name for entry in entries}
    for path in sorted(folder.glob("*.tar")):
        if path.name not in named:
            yield f"{path.name}: the manifest does not name it; run uniavgen shard"
    splits = {
        split: [entry for entry in entries if entry.split == split]
        for split in sorted({entry.split for entry in entries})
    }
    for name, text in energon_texts(splits).items():
        path = folder / META_FOLDER / name
        if not path.is_file() or path.read_text() != text:
            yield f"{META_FOLDER}/{name}: missing or different from the manifest; run uniavgen shard"
    yield from _database_problems(folder / META_FOLDER / "index.sqlite", [entry.samples for entry in entries])


def _database_problems(path: Path, samples: Sequence[int]) -> Iterator[str]:
    import sqlite3

    name = f"{META_FOLDER}/{path.name}"
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            counts = connection.execute(
                "SELECT tar_file_id, count(*) FROM samples GROUP BY 1 ORDER BY 1"
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        yield f"{name}: {error}; remove {META_FOLDER} and run uniavgen shard"
        return
    if counts != list(enumerate(samples)):
        yield f"{name}: its samples differ from the manifest; remove {META_FOLDER} and run uniavgen shard"
