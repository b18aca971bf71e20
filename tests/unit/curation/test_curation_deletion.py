"""Deletion: no file of the corpus has a trace, other rows are unchanged, also after a kill at any time."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paths import ROOT

from uniavgen.curation.captions.vlm_captions import captions_of
from uniavgen.curation.config import CaptionConfig, SplitConfig
from uniavgen.curation.deletion import delete, find_source, find_speaker, is_unfinished
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.curation.policy.verdicts import judge
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.deletion import TOMBSTONES, read_tombstones
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.latents.cache import (
    LATENTS_LOCK,
    LatentCache,
    LatentSample,
    cache_folders,
    latents_digest,
    write_manifest,
    write_sidecar,
)
from uniavgen.shards.tar.manifest import read_manifest, read_shard_keys
from uniavgen.shards.tar.tar_writer import commit_tar
from uniavgen.shards.write.publish import publish_shards
from uniavgen.shards.write.writer import write_shards

Make = Callable[..., Any]
SECRET = "xylophone"
TALK = {
    "transcript": f"the {SECRET} was mine",
    "words": [{"text": SECRET, "start_s": 0.1, "end_s": 0.5, "score": 0.9}],
}


def trace(root: Path, *needles: str) -> list[str]:
    """Files of the corpus with any of the needles in their name or content.

    Tables are decompressed; tars are not compressed.
    """
    files = []
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != TOMBSTONES:
            content = path.read_bytes()
            if path.suffix == ".parquet":
                import pyarrow.parquet as pq

                content += repr(pq.read_table(path).to_pydict()).encode()
            if any(needle.encode() in content or needle in str(path.relative_to(root)) for needle in needles):
                files.append(str(path.relative_to(root)))
    return files


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    """Source `src_secret` has the secret speaker and another one, `src_again` only the secret speaker."""
    rows = [make_clip(f"src{i}", 2.0 * j, f"p{i}") for i in range(4) for j in range(2)]
    rows += [make_clip("src_secret", 0.0, "hidden", **TALK) | {"speaker": "src_secr-S00"}]
    rows += [make_clip("src_secret", 2.0, "other") | {"speaker": "src_secr-S01"}]
    rows += [make_clip("src_again", 0.0, "hidden", **TALK) | {"speaker": "src_agai-S03"}]
    made: Corpus = make_corpus(rows)
    for source, label in (("src_secret", "SPEAKER_00"), ("src_again", "SPEAKER_03")):
        row = made.query(f"SELECT * FROM sources WHERE source_id = '{source}'").to_pylist()[0]
        span = {"start_s": 0.1, "end_s": 0.5}
        turns = [span | {"label": label}, span | {"label": "SPEAKER_01"}]
        words = [span | {"text": SECRET, "score": 1.0, "speaker": label}]
        words += [span | {"text": "harmless", "score": 1.0, "speaker": "SPEAKER_01"}]
        made.upsert("sources", [row | {"turns": turns, "words": words}])
        measured = made.root / "measured" / source[:2] / source
        measured.mkdir(parents=True)
        (measured / "transcribe.0.npz").write_text(SECRET)
    decide(made, load_policy("default"))
    (made.root / "report").mkdir()
    (made.root / "report" / "index.html").write_text(SECRET)
    shard(made)
    cache_latents(made)
    return made


def cache_latents(corpus: Corpus) -> None:
    """Small sidecars as `uniavgen cache-latents` writes them; the first clip of each tar is skipped."""
    shards = corpus.root / "shards"
    manifest = read_manifest(shards)
    assert manifest is not None
    folder = shards / "latents" / latents_digest({"windows": 1})
    folder.mkdir(parents=True)
    arrays = {
        name: np.zeros((1, 2), np.float16)
        for name in ("video", "reference", "face", "mel", "reference_mel", "caption")
    }
    flags = {
        "start": np.zeros(1, np.int32),
        "reference_inside": np.ones(1, bool),
        "caption_mask": np.ones(1, bool),
    }
    spoken = {
        row["clip_id"]: row["transcript"]
        for row in corpus.read("clips", ["clip_id", "transcript"]).to_pylist()
    }
    made = []
    for entry in manifest.entries:
        first, *others = read_shard_keys(shards, entry)
        cached = [
            (key, LatentSample(**arrays, **flags, speech=np.array([spoken[key].encode()]))) for key in others
        ]
        part = write_sidecar(folder, entry.name, entry.sha256, [(first, "short-clip"), *cached])
        commit_tar(folder, part.part, part.entry)
        made.append(part.entry)
    write_manifest(folder, LatentCache(folder.name, {"windows": 1}, {}, tuple(made)))
    (folder / ".train-000009.tar.0f3a.part").write_text(SECRET)


def sidecars(corpus: Corpus) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for folder in cache_folders(corpus.root / "shards")
        for path in folder.glob("*.tar")
    }


def test_deletion_removes_only_sidecars_with_deleted_clips(corpus: Corpus) -> None:
    before, target = sidecars(corpus), find_source(corpus, "src_again")
    shards = corpus.root / "shards"
    (affected,) = [
        e.name for e in read_manifest(shards).entries if target.clips & set(read_shard_keys(shards, e))
    ]  # type: ignore[union-attr]
    delete(corpus, target)
    assert sidecars(corpus) == {name: data for name, data in before.items() if name != affected}
    (folder,) = cache_folders(shards)
    cache = LatentCache.from_bytes((folder / "manifest.json").read_bytes(), folder)
    assert {entry.name for entry in cache.entries} == before.keys() - {affected}
    shard(corpus)
    assert sidecars(corpus) == {name: data for name, data in before.items() if name != affected}


def test_deletion_is_refused_while_latents_are_cached(corpus: Corpus) -> None:
    from filelock import FileLock

    with (
        FileLock(corpus.root / LATENTS_LOCK),
        pytest.raises(UserError, match="another run caches, copies or deletes latents"),
    ):
        delete(corpus, find_source(corpus, "src_again"))
    assert not is_unfinished(corpus)


def shard(corpus: Corpus) -> Any:
    return write_shards(corpus, ShardConfig(max_samples=2), caption=captions_of(corpus, CaptionConfig()))


def test_deleted_source_leaves_no_trace_and_other_rows_stay(corpus: Corpus) -> None:
    others = corpus.query("SELECT * FROM clips WHERE source_id <> 'src_secret' ORDER BY clip_id").to_pylist()
    before = {path: path.read_bytes() for path in (corpus.root / "shards").glob("*.tar")}
    gone = corpus.query("SELECT clip_id FROM clips WHERE source_id = 'src_secret'")["clip_id"].to_pylist()
    files_before = trace(corpus.root, "src_secret", *gone)
    assert {name.split("/")[0] for name in files_before} >= {
        "clips",
        "sources",
        "media",
        "decisions",
        "measured",
        "shards",
    }
    assert any(name.startswith("shards/latents/") for name in files_before)
    done = delete(corpus, find_source(corpus, "src_secret.mp4"))
    written = shard(corpus)
    assert trace(corpus.root, "src_secret", "src_secr-", *gone) == []
    assert corpus.query("SELECT * FROM clips ORDER BY clip_id").to_pylist() == others
    assert (done.clips, done.sources, done.seconds, done.rows["decisions"]) == (2, 1, 4.0, 2)
    assert written.reused > 0
    assert sum(path.exists() and path.read_bytes() == data for path, data in before.items()) == written.reused
    assert read_tombstones(corpus.root).contains("src_secret")
    assert not read_tombstones(corpus.root).contains("src0")


def test_deleted_speaker_is_removed_from_every_source(corpus: Corpus) -> None:
    target = find_speaker(corpus, "src_secr-S00", SplitConfig())
    assert target.speakers == {"src_secr-S00", "src_agai-S03"}
    delete(corpus, target)
    shard(corpus)
    assert trace(corpus.root, SECRET, "src_secr-S00", "src_agai-S03", *target.clips) == []
    row = corpus.query("SELECT turns, words FROM sources WHERE source_id = 'src_secret'").to_pylist()[0]
    assert [turn["label"] for turn in row["turns"]] == ["SPEAKER_01"]
    assert [word["text"] for word in row["words"]] == ["harmless"]
    assert corpus.query("SELECT count(*) AS n FROM clips").to_pylist() == [{"n": 9}]
    assert read_tombstones(corpus.root).contains("src_agai-S03")


def test_deletion_moves_no_other_clip_to_other_side(corpus: Corpus) -> None:
    sides = dict(
        zip(*(corpus.read("decisions")[name].to_pylist() for name in ("clip_id", "split")), strict=True)
    )
    target = find_source(corpus, "src_again")
    delete(corpus, target)
    decide(corpus, load_policy("default"))
    after = dict(
        zip(*(corpus.read("decisions")[name].to_pylist() for name in ("clip_id", "split")), strict=True)
    )
    assert after == {clip: side for clip, side in sides.items() if clip not in target.clips}


def test_decide_is_refused_if_deletion_ran_meanwhile(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def delete_midway(*args: Any) -> Any:
        delete(Corpus.open(corpus.root), find_source(corpus, "src_again"))
        return judge(*args)

    monkeypatch.setattr("uniavgen.curation.policy.decisions.judge", delete_midway)
    with pytest.raises(UserError, match="a deletion ran at the same time"):
        decide(corpus, load_policy("pretrain"))
    monkeypatch.undo()
    decide(corpus, load_policy("pretrain"))
    shard(corpus)
    assert trace(corpus.root, "src_again") == []


def test_forget_command_is_refused_while_shards_are_written_and_lists_copies(
    corpus: Corpus, tmp_path: Path
) -> None:
    from filelock import FileLock

    from uniavgen.orchestration.commands.forget import forget_from_corpus
    from uniavgen.orchestration.config import Config

    settings = Config.model_validate(
        {"shard": {"max_samples": 2}, "tracking": {"folder": str(tmp_path / "mlflow")}}
    )
    copy = tmp_path / "copy"
    publish_shards(corpus.root / "shards", str(copy))
    with (
        FileLock(corpus.root / ".shards.lock"),
        pytest.raises(UserError, match=r"nothing was deleted.*shard --to") as busy,
    ):
        forget_from_corpus(corpus.root, settings, "src_again", None)
    assert busy.value.kind == "busy"
    assert len(corpus.query("SELECT * FROM clips WHERE source_id = 'src_again'")) == 1
    done = forget_from_corpus(corpus.root, settings, "src_again", None)
    assert trace(corpus.root, "src_again") == []
    assert done["copies"] == [copy.as_uri()]
    assert trace(copy, "src_again")
    publish_shards(corpus.root / "shards", done["copies"][0])
    assert trace(copy, "src_again") == []
    lost = corpus.query("SELECT min(clip_id) AS clip_id FROM decisions WHERE kept")["clip_id"][0].as_py()
    corpus.media_path(lost, "flac").unlink()
    with pytest.raises(
        UserError, match="deleted everywhere except in the shards.*media of 1 kept clips are missing"
    ):
        forget_from_corpus(corpus.root, settings, "src_secret", None)


@pytest.mark.parametrize(("name", "complaint"), [("nobody.mp4", "no such source"), ("src", "sources match")])
def test_unknown_or_ambiguous_name_is_refused(corpus: Corpus, name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        find_source(corpus, name)
    with pytest.raises(UserError, match="no such speaker"):
        find_speaker(corpus, name, SplitConfig())


KILLED = """
import os, sys
import uniavgen.curation.deletion as f, uniavgen.shards.corpus.deletion as e
from uniavgen.shards.corpus.tables import Corpus
calls = 0
def dying(module, name):
    real = getattr(module, name)
    def call(*args, **kw):
        global calls
        calls += 1
        if calls > int(sys.argv[2]):
            os._exit(9)
        return real(*args, **kw)
    setattr(module, name, call)
for name in ("rewrite_table", "add_tombstones", "_unlink", "_remove_tree", "_scrub_shared_sources"):
    dying(f, name)
dying(e.os, "replace")
corpus = Corpus.open(sys.argv[1])
f.delete(corpus, f.find_source(corpus, "src_secret"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("instant", [1, 2, 3, 6, 9, 11, 14])
def test_next_deletion_finishes_killed_one(corpus: Corpus, tmp_path: Path, instant: int) -> None:
    root = tmp_path / "killed"
    shutil.copytree(corpus.root, root)
    command = [sys.executable, "-c", KILLED, str(root), str(instant)]
    assert subprocess.run(command, cwd=ROOT, env=os.environ).returncode == 9
    other = Corpus.open(root)
    assert is_unfinished(other)
    delete(other, find_source(other, "src_again"))
    shard(other)
    assert trace(root, SECRET, "src_secret", "src_again") == []
    assert other.query("SELECT count(*) AS n FROM clips").to_pylist() == [{"n": 8}]
    assert not is_unfinished(other)


def test_dry_run_names_what_would_be_deleted_and_writes_nothing(corpus: Corpus, tmp_path: Path) -> None:
    from uniavgen.orchestration.commands.forget import preview_deletion
    from uniavgen.orchestration.config import Config

    settings = Config.model_validate({"tracking": {"folder": str(tmp_path / "mlflow")}})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    preview = preview_deletion(corpus.root, settings, "src_again", None)
    clips = corpus.query("SELECT clip_id FROM clips WHERE source_id = 'src_again'")["clip_id"].to_pylist()
    assert preview["sources"] == ["src_again"]
    assert preview["clips"] == sorted(clips)
    assert preview["shards"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
