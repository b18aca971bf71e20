"""The shard writer: readable by plain tools, reproducible, incremental, and safe against kills."""

import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.sample import REQUIRED_MEMBERS, decode_audio, decode_video, from_members
from uniavgen.shards.tar.index import ShardIndex, index_name
from uniavgen.shards.tar.tar_writer import commit_tar
from uniavgen.shards.write.changes import NewShard, ShardSample, find_changes, kept_clips, pack
from uniavgen.shards.write.writer import write_shard, write_shards

Make = Callable[..., Any]
ONE_TAR = ShardConfig()


def caption_of(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"a caption of {row['clip_id']}", "test-v1"


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    """Four clips of each of three speakers; speaker c is in val; one clip is rejected."""
    corpus: Corpus = make_corpus([make_clip(person, 2.0 * i, person) for person in "abc" for i in range(4)])
    decide(corpus)
    return corpus


def decide(corpus: Corpus, drop: str = "") -> None:
    """Write decisions that reject the first clip of speaker b and the clip `drop`."""
    rows = []
    for row in (
        corpus.read("clips").sort_by([("source_id", "ascending"), ("start_s", "ascending")]).to_pylist()
    ):
        kept = row["clip_id"] != drop and not (row["source_id"] == "b" and row["start_s"] == 0)
        row = {
            "clip_id": row["clip_id"],
            "kept": kept,
            "split": "val" if row["source_id"] == "c" else "train",
        }
        rows.append({**row, "reason": "" if kept else "test", "failed_rules": [], "policy_digest": "d1"})
    corpus.upsert("decisions", rows)


def manifest(corpus: Corpus) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((corpus.root / "shards" / "manifest.json").read_text())
    return content


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def index_of(corpus: Corpus, tar: str) -> ShardIndex:
    return ShardIndex.from_bytes((corpus.root / "shards" / index_name(tar)).read_bytes())


def test_plain_tar_and_webdataset_read_the_shards(corpus: Corpus) -> None:
    import webdataset

    write_shards(corpus, ONE_TAR, caption=caption_of)
    kept = corpus.query("SELECT clip_id FROM decisions WHERE kept AND split = 'train' ORDER BY clip_id")[
        "clip_id"
    ].to_pylist()
    tar = corpus.root / "shards" / "train-000000.tar"
    listed = subprocess.run(
        ["tar", "tf", str(tar)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name.split(".", 1)[0] for name in listed[::4]] == kept
    assert {name.split(".", 1)[1] for name in listed} == set(REQUIRED_MEMBERS)
    read = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == kept
    sample = from_members(read[0])
    assert sample.meta.caption == f"a caption of {kept[0]}"
    assert sample.meta.versions == {"ingest": "1"}
    assert [word.text for word in sample.meta.words] == ["hello", "dear", "world"]
    assert decode_video(sample.video).shape == (32, 96, 128, 3)
    assert len(decode_audio(sample.audio)) == 48_000


def test_every_span_of_the_index_is_one_sample(corpus: Corpus) -> None:
    write_shards(corpus, ONE_TAR, caption=caption_of)
    data = (corpus.root / "shards" / "train-000000.tar").read_bytes()
    index = index_of(corpus, "train-000000.tar")
    assert index.offset[0] == 0
    for row, key in enumerate(index.sample_keys()):
        span = data[index.offset[row] : index.offset[row] + index.length[row]]
        assert zlib.crc32(span) == index.crc32[row]
        assert (index.seconds[row], index.width_px[row], index.height_px[row]) == (2.0, 128, 96)
        with tarfile.open(fileobj=io.BytesIO(span)) as part:
            sizes = {member.name: member.size for member in part}
        assert sizes == {
            f"{key}.{name}": size for name, size in zip(index.members, index.sizes[row], strict=True)
        }
        assert set(index.members) == set(REQUIRED_MEMBERS)
    stream = SampleStream(str(corpus.root / "shards"), "train")
    assert {stream.sample_at(i).key for i in range(len(stream))} == set(index.sample_keys())


def test_manifest_has_counts_and_hashes(corpus: Corpus) -> None:
    summary = write_shards(corpus, ONE_TAR, caption=caption_of)
    content = manifest(corpus)
    assert (summary.samples, summary.shards) == ({"train": 7, "val": 4}, {"train": 1, "val": 1})
    assert summary.hours["train"] == pytest.approx(14 / 3600)
    assert content["policy_digest"] == "d1"
    assert content["tables"]["clips"] == corpus.versions()["clips"]
    for shard in content["shards"]:
        data = (corpus.root / "shards" / shard["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard["bytes"], shard["sha256"])
    assert sum(shard["samples"] for shard in content["shards"]) == 11


def test_equal_corpora_give_identical_files(make_corpus: Make, make_clip: Make, corpus: Corpus) -> None:
    other = make_corpus(
        [make_clip(person, 2.0 * i, person) for person in "cba" for i in (3, 1, 0, 2)], "other"
    )
    decide(other)
    for one in (corpus, other):
        write_shards(one, ONE_TAR, caption=caption_of)
    assert contents(corpus.root / "shards") == contents(other.root / "shards")


def test_second_run_changes_nothing(corpus: Corpus) -> None:
    write_shards(corpus, ONE_TAR, caption=caption_of)
    before = {path: path.stat().st_mtime_ns for path in (corpus.root / "shards").iterdir()}
    again = write_shards(corpus, ONE_TAR, caption=caption_of)
    assert (again.written, again.reused, again.removed) == (0, 2, 0)
    assert {path: path.stat().st_mtime_ns for path in (corpus.root / "shards").iterdir()} == before


def test_appended_clips_go_to_a_new_tar(corpus: Corpus, make_corpus: Make, make_clip: Make) -> None:
    write_shards(corpus, ONE_TAR, caption=caption_of)
    before = contents(corpus.root / "shards")
    more = make_corpus([make_clip("d", 2.0 * i, "d") for i in range(2)], "more")
    corpus.upsert("clips", more.read("clips").to_pylist())
    shutil.copytree(more.root / "media", corpus.root / "media", dirs_exist_ok=True)
    assert write_shards(corpus, ONE_TAR, caption=caption_of).undecided == 2
    decide(corpus)
    summary = write_shards(corpus, ONE_TAR, caption=caption_of)
    after = contents(corpus.root / "shards")
    assert (summary.written, summary.reused, summary.removed) == (1, 2, 0)
    assert {name: after[name] for name in before if name.endswith(".tar")} == {
        n: d for n, d in before.items() if n.endswith(".tar")
    }
    assert "train-000001.tar" in after


def test_dropped_clip_is_in_no_tar(corpus: Corpus) -> None:
    write_shards(corpus, ONE_TAR, caption=caption_of)
    victim = index_of(corpus, "val-000000.tar").sample_keys()[1]
    decide(corpus, drop=victim)
    summary = write_shards(corpus, ONE_TAR, caption=caption_of)
    assert (summary.written, summary.reused, summary.removed, summary.samples["val"]) == (1, 1, 1, 3)
    assert not any(victim.encode() in data for data in contents(corpus.root / "shards").values())


def test_another_caption_or_shard_size_rewrites_the_shards(corpus: Corpus) -> None:
    write_shards(corpus, ONE_TAR, caption=caption_of)
    assert write_shards(corpus, ONE_TAR, caption=lambda row: ("other", "test-v2")).written == 2
    assert (
        write_shards(corpus, ShardConfig(max_samples=100), caption=lambda row: ("other", "test-v2")).written
        == 2
    )


@pytest.mark.parametrize("renamed", ["tar", "idx", "index", "database", "manifest"])
def test_kill_before_a_rename_keeps_the_old_manifest_valid(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, renamed: str
) -> None:
    write_shards(corpus, ONE_TAR, caption=caption_of)
    endings = {
        "tar": ".tar",
        "idx": ".idx",
        "index": ".index.npz",
        "database": ".sqlite",
        "manifest": "manifest.json",
    }
    real = os.replace

    def killed(source: Any, target: Any) -> None:
        if str(target).endswith(endings[renamed]):
            raise KeyboardInterrupt
        real(source, target)

    changes = find_changes(corpus, kept_clips(corpus), ShardConfig(max_samples=6), caption=caption_of)
    assert not changes.kept
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_shards(corpus, ShardConfig(max_samples=6), caption=caption_of)
    for shard in manifest(corpus)["shards"]:
        assert (
            hashlib.sha256((corpus.root / "shards" / shard["name"]).read_bytes()).hexdigest()
            == shard["sha256"]
        )
    assert len(SampleStream(str(corpus.root / "shards"), "train")) == 7


def filled(changes: Any, caption: Any) -> list[NewShard]:
    from dataclasses import replace

    from uniavgen.shards.write.changes import clip_rows, sample_meta

    metas = [sample_meta(row, caption).model_dump_json() for row in clip_rows(changes.clips)]
    return [
        replace(shard, metas=tuple(metas[sample.row] for sample in shard.samples)) for shard in changes.new
    ]


def test_finished_tar_of_an_interrupted_run_is_reused_and_leftovers_are_removed(corpus: Corpus) -> None:
    changes = find_changes(corpus, kept_clips(corpus), ONE_TAR, caption=caption_of)
    (corpus.root / "shards").mkdir()
    shard = write_shard(filled(changes, caption_of)[0])
    entry = shard.entry
    commit_tar(corpus.root / "shards", shard.part, entry)
    stamp = (corpus.root / "shards" / entry.name).stat().st_mtime_ns
    (corpus.root / "shards" / ".train-000007.tar.0f3a.part").write_bytes(b"partial")
    (corpus.root / "shards" / "train-000009.tar").write_bytes(b"stale")
    (corpus.root / "shards" / "notes.txt").write_text("not ours")
    summary = write_shards(corpus, ONE_TAR, caption=caption_of)
    assert (corpus.root / "shards" / entry.name).stat().st_mtime_ns == stamp
    assert summary.removed == 1
    others = {path.name for path in (corpus.root / "shards").iterdir() if ".tar" not in path.name}
    assert others == {".nv-meta", "manifest.json", "notes.txt"}
    assert len(list((corpus.root / "shards").glob("*.tar"))) == 2


@pytest.mark.slow
def test_ray_writes_the_same_tars_and_names_a_damaged_clip(corpus: Corpus, tmp_path: Path) -> None:
    import ray

    seen: list[tuple[int, int]] = []
    without_ray = Corpus.open(shutil.copytree(corpus.root, tmp_path / "alone"))
    write_shards(without_ray, ShardConfig(max_samples=3), caption=caption_of)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        summary = write_shards(
            corpus,
            ShardConfig(max_samples=3),
            caption=caption_of,
            on_progress=lambda done, total: seen.append((done, total)),
        )
        assert summary.shards == {"train": 3, "val": 2}
        assert seen == [(i, 5) for i in range(1, 6)]
        assert contents(corpus.root / "shards") == contents(without_ray.root / "shards")
        victim = corpus.query("SELECT min(clip_id) AS clip_id FROM decisions WHERE kept")["clip_id"][
            0
        ].as_py()
        corpus.media_path(victim, "face.npz").write_bytes(b"no archive")
        before = manifest(corpus)
        with pytest.raises(UserError, match=f"media of clip {victim} are damaged"):
            write_shards(corpus, ShardConfig(max_samples=2), caption=caption_of)
        assert manifest(corpus) == before
    finally:
        ray.shutdown()


def test_missing_decisions_media_and_kept_clips_are_errors_with_hints(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uniavgen curate"):
        write_shards(Corpus.create(tmp_path / "fresh"), ONE_TAR, caption=caption_of)
    victim = corpus.query("SELECT min(clip_id) AS clip_id FROM decisions WHERE kept")["clip_id"][0].as_py()
    corpus.media_path(victim, "flac").unlink()
    with pytest.raises(UserError, match=f"media of 1 kept clips are missing, first {victim}.flac"):
        write_shards(corpus, ONE_TAR, caption=caption_of)
    rejected = [{**row, "kept": False} for row in corpus.read("decisions").to_pylist()]
    corpus.upsert("decisions", rejected)
    with pytest.raises(UserError, match="the policy keeps no clip"):
        write_shards(corpus, ONE_TAR, caption=caption_of)
    assert not (corpus.root / "shards").exists()


def test_pack_balances_bytes_and_lengths() -> None:
    random = np.random.default_rng(0)
    seconds = random.choice([2.5, 4.0, 6.0, 9.0], 1000, p=[0.4, 0.3, 0.2, 0.1])
    samples = [
        ShardSample(f"{i:04d}", "train", i, float(length), int(length * random.uniform(60e3, 120e3)), "")
        for i, length in enumerate(seconds)
    ]
    packs = pack(samples, ShardConfig(shard_mb=40))
    assert sorted(sample.key for one in packs for sample in one) == [sample.key for sample in samples]
    assert all([sample.key for sample in one] == sorted(sample.key for sample in one) for one in packs)
    total = sum(sample.bytes for sample in samples)
    assert len(packs) == math.ceil(total / 40e6)
    largest = {}
    for length in (2.5, 4.0, 6.0, 9.0):
        sizes = [sum(sample.bytes for sample in one if sample.seconds == length) for one in packs]
        largest[length] = max(sample.bytes for sample in samples if sample.seconds == length)
        assert max(sizes) - min(sizes) <= largest[length]
    spread = [sum(sample.bytes for sample in one) for one in packs]
    assert max(spread) - min(spread) <= sum(largest.values())
    assert max(spread) - min(spread) <= 0.05 * total / len(packs)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.1, 12)), min_size=1, max_size=60),
    most=st.integers(1, 20),
    shard_mb=st.floats(0.01, 5),
)
def test_pack_loses_no_sample_and_respects_max_samples(
    sizes: list[tuple[int, float]], most: int, shard_mb: float
) -> None:
    samples = [
        ShardSample(f"{i:02d}", "train", i, length, size, "") for i, (size, length) in enumerate(sizes)
    ]
    packs = pack(samples, ShardConfig(max_samples=most, shard_mb=shard_mb))
    assert sorted(sample.key for one in packs for sample in one) == [sample.key for sample in samples]
    assert all(1 <= len(one) <= most for one in packs)


def test_licences_are_counted_per_shard(corpus: Corpus) -> None:
    write_shards(corpus, ONE_TAR, caption=caption_of)
    assert {shard["name"]: shard["licences"] for shard in manifest(corpus)["shards"]} == {
        "train-000000.tar": {"unknown": 7},
        "val-000000.tar": {"unknown": 4},
    }
    config = ShardConfig(licences={"/videos/a*": "CC-BY-4.0", "/videos/[abc].mp4": "CC0-1.0"})
    summary = write_shards(corpus, config, caption=caption_of)
    assert (summary.written, summary.reused) == (0, 2), "licences do not change the tars"
    assert summary.licences == {"CC-BY-4.0": 4, "CC0-1.0": 7}
    assert manifest(corpus)["shards"][0]["licences"] == {"CC-BY-4.0": 4, "CC0-1.0": 3}


def test_newer_shards_are_refused_and_older_ones_replaced(
    corpus: Corpus,
) -> None:
    write_shards(corpus, ONE_TAR, caption=caption_of)
    path = corpus.root / "shards" / "manifest.json"
    path.write_text(json.dumps({**manifest(corpus), "manifest_version": 99}))
    before = contents(corpus.root / "shards")
    with pytest.raises(UserError, match="have version 99.1, this program reads 2.1"):
        write_shards(corpus, ONE_TAR, caption=caption_of)
    assert contents(corpus.root / "shards") == before
    path.write_text(json.dumps({**manifest(corpus), "manifest_version": 1}))
    summary = write_shards(corpus, ONE_TAR, caption=caption_of)
    assert (summary.written, summary.removed) == (2, 2)
    assert {shard["name"] for shard in manifest(corpus)["shards"]} == {"train-000001.tar", "val-000001.tar"}


def test_concurrent_writer_is_refused(corpus: Corpus) -> None:
    from filelock import FileLock

    with (
        FileLock(corpus.root / ".shards.lock"),
        pytest.raises(UserError, match="another run writes shards here"),
    ):
        write_shards(corpus, ONE_TAR, caption=caption_of)
