"""Whether a `shards` folder is what its manifest says: everything opened, hashed and counted, some samples decoded.

In: a corpus. Out: one line per defect. Nothing is changed.
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
"""How far sound, picture and the clip's span may differ in length: rounding to whole frames at both ends."""


@dataclass(frozen=True)
class VerifySummary:
    """What was opened (`sidecars`: of cached latents), and what is wrong: one line per defect, sorted by file."""

    shards: int
    sidecars: int
    samples: int
    decoded: int
    bytes: int
    defects: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class ShardCheck:
    """One tar to open: where, what the manifest says of it, and the places of the samples to decode."""

    folder: Path
    entry: ShardEntry
    decode: tuple[int, ...]


@dataclass(frozen=True)
class CheckedShard:
    """What a tar holds and what is wrong with it."""

    name: str
    split: str
    keys: tuple[str, ...]
    decoded: int
    bytes: int
    defects: tuple[str, ...]


def verify_shards(
    corpus: Corpus, config: ShardConfig, *, on_progress: Callable[[int, int], None] | None = None
) -> VerifySummary:
    """Open every shard, as Ray tasks where there is much, and compare all with the manifest and the decisions.

    Raises UserError where there is no manifest that this program reads; every other fault is a line in `defects`.
    """
    started = time.monotonic()
    folder = corpus.root / "shards"
    manifest = read_manifest(folder)
    if not manifest:
        raise UserError("no shards here", where=folder, hint="write them: uniavgen shard", kind="no-shards")
    if not manifest.current:
        raise UserError(
            "the shards are of an older version",
            where=folder,
            hint="run uniavgen shard",
            kind="wrong-version",
        )
    entries = manifest.entries
    checks = list(_checks(folder, entries, config.verify_decodes))
    sidecars, of_latents = latent_checks(folder, {entry.name: entry for entry in entries})
    total_bytes = sum(entry.bytes for entry in entries) + sum(check.entry.bytes for check in sidecars)
    todo: list[ShardCheck | SidecarCheck] = [*checks, *sidecars]
    checked: list[CheckedShard] = []
    for number, found in enumerate(
        map_unordered(_verify, todo, on_ray=worth_ray(len(todo), total_bytes)), start=1
    ):
        if isinstance(found, CheckedShard):
            checked.append(found)
        else:
            of_latents += found
        if on_progress:
            on_progress(number, len(todo))
    checked.sort(key=lambda shard: shard.name)
    defects = [defect for shard in checked for defect in shard.defects]
    defects += [*_against_decisions(corpus, checked), *_against_folder(folder, entries), *sorted(of_latents)]
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


def _checks(folder: Path, entries: Sequence[ShardEntry], decodes: int) -> Iterator[ShardCheck]:
    """Every tar, the samples to decode spread evenly over all of them."""
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
    """Open one tar; never raises for what it finds there."""
    entry, tar = check.entry, check.folder / check.entry.name
    defects: list[str] = []
    keys, decoded, size = list[str](), 0, 0
    try:
        size, digest = size_and_digest(tar)
        if size != entry.bytes:
            defects.append(f"{entry.name}: {size} bytes, the manifest says {entry.bytes}; {REPAIR}")
        elif digest != entry.sha256:
            defects.append(f"{entry.name}: its SHA-256 is not the manifest's; {REPAIR}")
        index = ShardIndex.from_bytes((check.folder / entry.index).read_bytes(), entry.index)
        keys = index.sample_keys()
        if len(keys) != entry.samples:
            defects.append(f"{entry.index}: {len(keys)} samples, the manifest says {entry.samples}; {REPAIR}")
        idx = tar.with_name(f"{tar.name}.idx")
        if not idx.is_file() or idx.read_bytes() != index.to_energon():
            defects.append(f"{idx.name}: missing or not as the index says; run uniavgen shard")
        problems = dict(_sample_problems(tar, index))
        defects += [f"{entry.name}: sample {key}: {problem}" for key, problem in problems.items()]
        for place in check.decode:
            if place < len(index) and keys[place] not in problems:
                decoded += 1
                defects += [f"{entry.name}: {problem}" for problem in _decode_problems(tar, index, place)]
    except FileNotFoundError as error:
        defects.append(f"{Path(str(error.filename)).name}: missing; run uniavgen shard")
    except (OSError, UserError, tarfile.TarError) as error:
        defects.append(f"{entry.name}: {error}")
    return CheckedShard(entry.name, entry.split, tuple(keys), decoded, size, tuple(defects))


def _sample_problems(tar: Path, index: ShardIndex) -> Iterator[tuple[str, str]]:
    """(key, problem) of every sample whose bytes or members are not what the index says."""
    with tar.open("rb") as file:
        for place, key in enumerate(index.sample_keys()):
            span = read_span(file, index, place)
            if len(span) != index.length[place]:
                yield key, "the tar ends within it"
                return
            if zlib.crc32(span) != index.crc32[place]:
                yield key, "its bytes are not those that were written"
                continue
            try:
                sizes = {name: len(data) for name, data in read_members(span, key).items()}
            except UserError as error:
                yield key, error.what
                continue
            if missing := set(REQUIRED_MEMBERS) - set(sizes):
                yield key, f"lacks {', '.join(sorted(missing))}"
            elif sizes != dict(zip(index.members, index.sizes[place].tolist(), strict=True)):
                yield key, "its members are not of the sizes that the index says"
    with tarfile.open(tar, mode="r:") as opened:  # as a plain reader finds them, indexes aside
        names = []
        for member in opened:
            names.append(member.name)
            if problem := member_problem(member):
                yield member.name.partition(".")[0], problem
    told = [f"{key}.{name}" for key in index.sample_keys() for name in index.members]
    if names != told:
        yield (
            next((a for a, b in zip(names, told, strict=False) if a != b), "?"),
            "the tar holds other members than its index",
        )


def _decode_problems(tar: Path, index: ShardIndex, place: int) -> Iterator[str]:
    key = index.sample_keys()[place]
    try:
        with tar.open("rb") as file:
            sample = from_members({"__key__": key, **read_members(read_span(file, index, place), key)})
        yield from (
            f"sample {key}: {problem}" for problem in _media_problems(sample, float(index.seconds[place]))
        )
    except UserError as error:
        yield error.what
    except Exception as error:  # decoders raise many kinds; each means the same here
        yield f"sample {key} cannot be decoded: {' '.join(str(error).split())[:200]}"


def _media_problems(sample: Sample, seconds: float) -> Iterator[str]:
    """Whether picture, sound, face and span are of one length."""
    frames, sound_s = len(decode_video(sample.video)), len(decode_audio(sample.audio)) / SAMPLE_RATE
    if len(sample.face.score) != frames:
        yield f"{frames} frames of picture, {len(sample.face.score)} of face"
    for what, length_s in (("picture", frames / VIDEO_FPS), ("sound", sound_s)):
        if abs(length_s - seconds) > LENGTH_TOLERANCE_S:
            yield f"its {what} lasts {length_s:.2f} s, its span {seconds:.2f} s"


def _against_decisions(corpus: Corpus, shards: Sequence[CheckedShard]) -> Iterator[str]:
    rows = corpus.query(
        "SELECT clip_id, split FROM decisions JOIN clips USING (clip_id) WHERE kept"
    ).to_pylist()
    wanted = {row["clip_id"]: row["split"] for row in rows}
    times = Counter(key for shard in shards for key in shard.keys)
    for shard in shards:
        yield from _misplaced(shard, wanted)
    for key in sorted(key for key, count in times.items() if count > 1):
        yield f"sample {key}: stands in {times[key]} shards; run uniavgen shard"
    missing = sorted(wanted.keys() - times.keys())
    if missing:
        yield f"decisions: {len(missing)} of {len(wanted)} kept clips are in no shard, first {missing[0]}; run uniavgen shard"


def _misplaced(shard: CheckedShard, wanted: Mapping[str, str]) -> Iterator[str]:
    for key in shard.keys:
        if key not in wanted:
            yield f"{shard.name}: sample {key}: the decisions do not keep it; run uniavgen shard"
        elif wanted[key] != shard.split:
            yield f"{shard.name}: sample {key}: the decisions put it into {wanted[key]}; run uniavgen shard"


def _against_folder(folder: Path, entries: Sequence[ShardEntry]) -> Iterator[str]:
    """Tars that nobody names, and what Megatron-Energon would read."""
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
            yield f"{META_FOLDER}/{name}: missing or not as the manifest says; run uniavgen shard"
    yield from _database_problems(folder / META_FOLDER / "index.sqlite", [entry.samples for entry in entries])


def _database_problems(path: Path, samples: Sequence[int]) -> Iterator[str]:
    import sqlite3

    name = f"{META_FOLDER}/{path.name}"
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        try:
            found = connection.execute(
                "SELECT tar_file_id, count(*) FROM samples GROUP BY 1 ORDER BY 1"
            ).fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        yield f"{name}: {error}; remove {META_FOLDER} and run uniavgen shard"
        return
    if found != list(enumerate(samples)):
        yield f"{name}: its samples are not the manifest's; remove {META_FOLDER} and run uniavgen shard"
