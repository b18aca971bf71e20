"""Corpus tables: idempotent commits, safe rewrites, and clear errors for unusable folders."""

import json
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.shards.corpus.deletion import rewrite_table
from uniavgen.shards.corpus.schema import KEYS, schema
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import CORPUS_VERSION, Corpus, clip_id
from uniavgen.shards.errors import UserError


def source(name: str, duration_s: float = 1.0) -> dict[str, object]:
    return {"source_id": name, "uri": f"{name}.mp4", "duration_s": duration_s}


def test_upsert_replaces_rows_with_the_same_key(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    corpus.upsert("sources", [source("a"), source("b")])
    corpus.upsert("sources", [source("b", 2.0), source("c")])
    rows = corpus.query("SELECT source_id, duration_s FROM sources ORDER BY 1").to_pylist()
    assert [(row["source_id"], row["duration_s"]) for row in rows] == [("a", 1.0), ("b", 2.0), ("c", 1.0)]


def test_remove_ignores_unknown_keys(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    corpus.upsert("failures", [{"uri": "it's.mp4", "stage": "probe"}, {"uri": "b.mp4", "stage": "probe"}])
    corpus.remove("failures", ["it's.mp4", "never.mp4"])
    assert corpus.read("failures", ["uri"]).column("uri").to_pylist() == ["b.mp4"]


def test_unwritten_table_reads_as_empty_with_its_columns(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    clips = corpus.read("clips")
    assert len(clips) == 0
    assert set(SIGNALS) <= set(clips.column_names)
    assert corpus.versions() == dict.fromkeys(KEYS, -1)


def test_replace_commits_the_whole_table(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    schema = corpus.read("decisions").schema
    for kept in (True, False):
        row = {
            "clip_id": "x",
            "kept": kept,
            "reason": "",
            "failed_rules": [],
            "policy_digest": "d",
            "split": "train",
        }
        corpus.replace("decisions", pa.Table.from_pylist([row], schema=schema))
    assert corpus.read("decisions").to_pylist() == [
        {
            "clip_id": "x",
            "kept": False,
            "reason": "",
            "failed_rules": [],
            "policy_digest": "d",
            "split": "train",
        }
    ]
    assert corpus.versions()["decisions"] == 1


def test_open_without_a_corpus_says_how_to_create_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uniavgen ingest"):
        Corpus.open(tmp_path)


def test_open_refuses_another_version(tmp_path: Path) -> None:
    Corpus.create(tmp_path / "c")
    (tmp_path / "c" / "corpus.json").write_text(json.dumps({"corpus_version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Corpus.open(tmp_path / "c")


def test_create_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        Corpus.create(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@given(st.text(min_size=1), st.floats(0, 1e5), st.floats(0, 1e5))
def test_clip_ids_depend_on_source_and_milliseconds_only(name: str, start: float, end: float) -> None:
    assert clip_id(name, start, end) == clip_id(name, round(start, 3), round(end, 3))
    assert clip_id(name, start, end) != clip_id(name, start + 0.01, end)


def test_corpus_of_version_1_gets_the_new_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    from deltalake import write_deltalake

    root = tmp_path / "old"
    root.mkdir()
    (root / "corpus.json").write_text('{"corpus_version": 1}')
    older = pa.schema(
        [field for field in schema("clips") if field.name not in ("motion", "face", "video_hash")]
    )
    write_deltalake(
        str(root / "clips"), pa.Table.from_pylist([{"clip_id": "a", "source_id": "s"}], schema=older)
    )
    corpus = Corpus.open(root)
    corpus.upsert("clips", [{"clip_id": "b", "motion": 1.0, "face": [1.0, 2.0], "video_hash": [3]}])
    rows = corpus.query("SELECT clip_id, motion, face, video_hash FROM clips ORDER BY 1").to_pylist()
    assert [list(row.values()) for row in rows] == [["a", None, None, None], ["b", 1.0, [1.0, 2.0], [3]]]
    assert json.loads((root / "corpus.json").read_text()) == {"corpus_version": CORPUS_VERSION}


def test_rewrite_keeps_concurrent_commits_of_other_runs(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    corpus.append("failures", [{"uri": "first"}, {"uri": "forgotten"}])
    failed, others = list[BaseException](), 15

    def commit() -> None:
        try:
            mine = Corpus.open(corpus.root)
            for number in range(others):
                mine.append("failures", [{"uri": f"other {number}"}])
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    seen = []
    while thread.is_alive():
        rewrite_table(corpus, "failures", "uri <> 'forgotten'")
        seen.append(len(corpus.read("failures", ["uri"])))
    thread.join()
    assert failed == []
    assert 0 not in seen
    assert set(corpus.read("failures")["uri"].to_pylist()) == {
        "first",
        *(f"other {number}" for number in range(others)),
    }


def test_reader_waits_while_a_rewritten_table_is_renamed(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    corpus.append("failures", [{"uri": "a"}])
    table, old, new = (corpus.root / name for name in ("failures", ".failures.gone", ".failures.fresh"))
    shutil.copytree(table, new)
    with Corpus(corpus.root).writing():
        table.rename(old)
        counts: list[int] = []
        reader = threading.Thread(target=lambda: counts.append(len(Corpus(corpus.root).read("failures"))))
        reader.start()
        reader.join(timeout=0.3)
        assert counts == []
        new.rename(table)
    reader.join(timeout=20)
    assert counts == [1]
    assert not old.exists()


def test_next_writer_completes_a_killed_rewrite(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    corpus.append("failures", [{"uri": "a"}])
    shutil.copytree(corpus.root / "failures", corpus.root / ".failures.fresh")
    (corpus.root / "failures").rename(corpus.root / ".failures.gone")
    corpus.append("failures", [{"uri": "b"}])
    assert sorted(corpus.read("failures")["uri"].to_pylist()) == ["a", "b"]
