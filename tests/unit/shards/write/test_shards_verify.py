"""Verification: complete shards have no defect, and each planted defect is named in one line."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import (
    LatentCache,
    LatentEntry,
    LatentReader,
    LatentSample,
    latents_digest,
    write_manifest,
    write_sidecar,
)
from uniavgen.shards.store import Store
from uniavgen.shards.tar.index import ShardIndex, index_name
from uniavgen.shards.tar.manifest import read_manifest, read_shard_keys
from uniavgen.shards.tar.tar_writer import commit_tar
from uniavgen.shards.write.verify import VerifySummary, verify_shards
from uniavgen.shards.write.writer import write_shards

Make = Callable[..., Any]
CONFIG = ShardConfig(max_samples=3)
TAR = "train-000001.tar"


def caption_of(row: Any) -> tuple[str, str]:
    return "a caption", "test"


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    """Five clips of speaker a in two train tars, two of speaker b in a val tar."""
    rows = [make_clip("a", 2.0 * i, "a") for i in range(5)] + [make_clip("b", 2.0 * i, "b") for i in range(2)]
    corpus: Corpus = make_corpus(rows)
    decided = {"kept": True, "reason": "", "failed_rules": [], "policy_digest": "d"}
    split = {"a": "train", "b": "val"}
    corpus.upsert(
        "decisions",
        [{"clip_id": row["clip_id"], "split": split[row["source_id"]], **decided} for row in rows],
    )
    write_shards(corpus, CONFIG, caption=caption_of)
    return corpus


def verify(corpus: Corpus) -> VerifySummary:
    return verify_shards(corpus, CONFIG)


def test_complete_shards_have_no_defect(corpus: Corpus) -> None:
    seen: list[tuple[int, int]] = []
    summary = verify_shards(corpus, CONFIG, on_progress=lambda done, total: seen.append((done, total)))
    assert summary.defects == ()
    assert (summary.shards, summary.samples, summary.decoded, seen[-1]) == (3, 7, 7, (3, 3))
    assert summary.bytes == sum(path.stat().st_size for path in (corpus.root / "shards").glob("*.tar"))
    assert verify_shards(corpus, ShardConfig(max_samples=3, verify_decodes=2)).decoded == 2


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def damage(corpus: Corpus, kind: str) -> None:
    shards = corpus.root / "shards"
    tar, index = shards / TAR, shards / index_name(TAR)
    if kind == "bit":
        flip(tar, 1000)
    elif kind == "cut":
        tar.write_bytes(tar.read_bytes()[:5000])
    elif kind == "gone":
        tar.unlink()
    elif kind == "index":
        flip(index, index.stat().st_size // 2)
    elif kind == "idx":
        flip(shards / f"{TAR}.idx", 8)
    elif kind == "stray":
        shutil.copy(tar, shards / "train-000007.tar")
    elif kind == "split.yaml":
        (shards / ".nv-meta" / "split.yaml").write_text("split_parts: {}\n")
    elif kind == "database":
        with closing(sqlite3.connect(shards / ".nv-meta" / "index.sqlite")) as database, database:
            database.execute("DELETE FROM samples WHERE tar_file_id = 1 AND sample_index = 0")
    elif kind == "no database":
        (shards / ".nv-meta" / "index.sqlite").unlink()
    else:
        rows = corpus.query(f"SELECT * FROM decisions WHERE clip_id = '{first_key(corpus)}'").to_pylist()
        corpus.upsert(
            "decisions", [{**rows[0], **{"dropped": {"kept": False}, "moved": {"split": "val"}}[kind]}]
        )


def first_key(corpus: Corpus) -> str:
    return ShardIndex.from_bytes((corpus.root / "shards" / index_name(TAR)).read_bytes()).sample_keys()[0]


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        ("bit", ["SHA-256 differs", "bytes changed since they were written"]),
        ("cut", ["5000 bytes, the manifest says"]),
        ("gone", [f"{TAR}: missing"]),
        ("index", [f"{TAR}.index.npz"]),
        ("idx", [f"{TAR}.idx: missing or different from the index"]),
        ("stray", ["train-000007.tar: the manifest does not name it"]),
        ("split.yaml", [".nv-meta/split.yaml: missing or different from"]),
        ("database", [".nv-meta/index.sqlite: its samples differ"]),
        ("no database", [".nv-meta/index.sqlite: unable to open"]),
        ("dropped", ["the decisions do not keep it"]),
        ("moved", ["the decisions put it into val"]),
    ],
)
def test_planted_defect_is_named_and_repaired_by_shard(
    corpus: Corpus, kind: str, messages: list[str]
) -> None:
    victim = first_key(corpus)
    damage(corpus, kind)
    defects = verify(corpus).defects
    for text in messages:
        assert any(text in defect for defect in defects), defects
    if kind in ("bit", "dropped", "moved"):
        assert any(victim in defect for defect in defects)
    assert not any("\n" in defect for defect in defects)
    for name in {
        word.rstrip(";:") for defect in defects if "remove" in defect for word in defect.split()[:1]
    }:
        (corpus.root / "shards" / name).unlink(missing_ok=True)  # as the messages say
    write_shards(corpus, CONFIG, caption=caption_of)
    assert verify(corpus).defects == ()


def test_decoding_finds_audio_shorter_than_the_video(corpus: Corpus) -> None:
    """The audio was truncated before the shards were written: hashes agree, only decoding finds it."""
    import soundfile

    path = corpus.media_path(first_key(corpus), "flac")
    wave, rate = soundfile.read(path)
    soundfile.write(path, wave[: len(wave) // 2], rate)
    write_shards(corpus, CONFIG, caption=caption_of)
    (defect,) = verify(corpus).defects
    assert "audio of 1.00 s, but a span of 2.00 s" in defect


def test_kept_clip_in_no_shard_is_a_defect(corpus: Corpus, make_corpus: Make, make_clip: Make) -> None:
    row = make_clip("new", 0.0, "new")
    corpus.upsert("clips", [row])
    decided = {"kept": True, "reason": "", "failed_rules": [], "policy_digest": "d", "split": "train"}
    corpus.upsert("decisions", [{"clip_id": row["clip_id"], **decided}])
    (defect,) = verify(corpus).defects
    assert (
        defect == f"decisions: 1 of 8 kept clips are in no shard, first {row['clip_id']}; run uniavgen shard"
    )


def test_missing_and_older_shards_are_errors_with_hints(corpus: Corpus) -> None:
    path = corpus.root / "shards" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "manifest_version": 1}))
    with pytest.raises(UserError, match="older version.*uniavgen shard"):
        verify(corpus)
    shutil.rmtree(path.parent)
    with pytest.raises(UserError, match="no shards here.*uniavgen shard"):
        verify(corpus)


def test_command_prints_a_line_per_defect_and_exits_with_1(corpus: Corpus) -> None:
    command = [
        str(Path(sys.executable).parent / "uniavgen"),
        "shard",
        "--verify",
        "--json",
        "--corpus",
        str(corpus.root),
    ]
    damage(corpus, "bit")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=corpus.root.parent)
    assert done.returncode == 1
    assert json.loads(done.stdout)["samples"] == 7
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"defect: {TAR}: ")]
    assert len(lines) == 2


def cache_latents(corpus: Corpus) -> Path:
    """Write a cache of small arrays for all shards, like `uniavgen cache-latents`; returns its folder."""
    shards, fields = corpus.root / "shards", {"windows": 1, "dtype": "float16"}
    folder = shards / "latents" / latents_digest(fields)
    folder.mkdir(parents=True)
    floats = {
        name: np.ones((1, 2), np.float16)
        for name in ("video", "reference", "face", "mel", "reference_mel", "caption")
    }
    flags = {
        "start": np.zeros(1, np.int32),
        "reference_inside": np.ones(1, bool),
        "caption_mask": np.ones(1, bool),
    }
    latents = LatentSample(**floats, **flags, speech=np.array([b"hello"]))
    entries = []
    for entry in read_manifest(shards).entries:  # type: ignore[union-attr]
        sidecar = write_sidecar(
            folder, entry.name, entry.sha256, [(key, latents) for key in read_shard_keys(shards, entry)]
        )
        commit_tar(folder, sidecar.part, sidecar.entry)
        entries.append(sidecar.entry)
    write_manifest(folder, LatentCache(folder.name, fields, {}, tuple(entries)))
    return folder


@pytest.mark.parametrize(
    ("kind", "messages"),
    [
        ("bit", ["SHA-256 differs from the manifest", "bytes changed since they were written"]),
        ("gone", [f"{TAR} is missing; run uniavgen cache-latents"]),
        ("fields", ["its manifest belongs to another cache"]),
        ("stray", ["train-000007.tar: the manifest does not name it; run uniavgen cache-latents"]),
        ("stale", [f"{TAR}: its shard is missing or was rewritten; run uniavgen cache-latents"]),
        ("nan", ["mel has NaN or Inf values", "SHA-256"]),
        ("other clips", ["its clips differ from those of its shard"]),
        ("no manifest", ["has no manifest"]),
    ],
)
def test_planted_defect_of_cached_latents_is_named(corpus: Corpus, kind: str, messages: list[str]) -> None:
    folder = cache_latents(corpus)
    complete = verify(corpus)
    assert (complete.defects, complete.sidecars) == ((), 3)
    damage_latents(folder, kind)
    defects = verify(corpus).defects
    assert defects
    assert all(line.startswith(f"latents/{folder.name}") and "\n" not in line for line in defects)
    for text in messages:
        assert any(text in line for line in defects), defects


def damage_latents(folder: Path, kind: str) -> None:
    manifest, tar = folder / "manifest.json", folder / TAR
    if kind == "bit":
        flip(tar, 1000)
    elif kind == "gone":
        tar.unlink()
    elif kind in ("fields", "stale"):
        text = manifest.read_text()
        entry = next(entry for entry in json.loads(text)["entries"] if entry["name"] == TAR)
        change = ('"windows": 1', '"windows": 2') if kind == "fields" else (entry["shard_sha256"], "0" * 64)
        manifest.write_text(text.replace(*change))
    elif kind == "stray":
        shutil.copy(tar, folder / "train-000007.tar")
    elif kind == "no manifest":
        manifest.unlink()
    else:
        index = ShardIndex.from_bytes((folder / index_name(TAR)).read_bytes())
        cache = LatentCache.from_bytes(manifest.read_bytes(), manifest)
        shards = {entry.name: entry.shard_sha256 for entry in cache.entries}
        reader = LatentReader(Store(str(folder.parents[1])), cache, shards)
        (key, first), *others = [(key, reader.read(TAR, key)) for key in index.sample_keys()]
        with_nan = replace(first, mel=np.full((1, 2), np.nan, np.float16))
        latents = [(key, with_nan), *others] if kind == "nan" else others
        part = write_sidecar(folder, TAR, LatentEntry(**index.shard).shard_sha256, latents)
        commit_tar(folder, part.part, part.entry)
