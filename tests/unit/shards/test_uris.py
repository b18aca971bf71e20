"""Paths and URIs: names that look like URLs, patterns or escapes reach every library as the same file."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from tests.factories.hostile_names import HOSTILE_NAMES, TABLES_OPEN, TABLES_REFUSE
from uniavgen.shards.corpus.deletion import rewrite_table
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UsageError, UserError, printable
from uniavgen.shards.store import Store
from uniavgen.shards.uris import (
    absolute_sqlite_uri,
    local_folder,
    local_path,
    sqlite_path,
    sqlite_uri,
    uri_of,
)


def rows(*names: str) -> list[dict[str, object]]:
    return [{"source_id": name, "uri": name} for name in names]


def ids(corpus: Corpus) -> list[str]:
    return sorted(corpus.query("SELECT source_id FROM sources")["source_id"].to_pylist())


@pytest.mark.parametrize("name", TABLES_OPEN, ids=ascii)
def test_tables_work_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    corpus = Corpus.create(tmp_path / name / "corpus")
    corpus.append("sources", rows("a", "b"))
    corpus.upsert("sources", rows("b", "c"))
    corpus.remove("sources", ["a"])
    corpus.append("sources", rows("d"))
    corpus.compact("sources", 1)
    assert ids(corpus) == ["b", "c", "d"]
    assert corpus.read("sources", ["source_id"], only=("source_id", ["c"]))["source_id"].to_pylist() == ["c"]
    assert len(corpus.read("sources")) == 3
    rewrite_table(corpus, "sources", "source_id <> 'c'")
    assert ids(Corpus.open(corpus.root)) == ["b", "d"]
    assert corpus.versions(["sources"]) == {"sources": 0}
    assert os.listdir(tmp_path) == [name]
    assert os.listdir(tmp_path / name) == ["corpus"]


@pytest.mark.parametrize("name", TABLES_REFUSE, ids=ascii)
def test_path_that_tables_cannot_have_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "corpus"
    with pytest.raises(UserError) as caught:
        Corpus.create(folder)
    assert caught.value.kind == "bad-path"
    assert str(caught.value).isprintable()
    assert os.listdir(tmp_path) == []
    shutil.copytree(Corpus.create(tmp_path / "plain").root, folder)
    with pytest.raises(UserError, match="cannot open"):
        Corpus.open(folder)


def test_link_to_a_plain_folder_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "[v2]").symlink_to(tmp_path / "plain")
    corpus = Corpus.create(tmp_path / "[v2]" / "corpus")
    corpus.append("sources", rows("a"))
    assert ids(corpus) == ["a"]


def test_path_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not UTF-8 .*caf\\xe9"):
        Corpus.create(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))


@pytest.mark.parametrize(("name", "twin"), [("a*b", "axb"), ("q?y", "qzy"), ("{a,b}", "a")])
def test_folder_named_like_a_pattern_reads_its_own_files_only(tmp_path: Path, name: str, twin: str) -> None:
    corpus = Corpus.create(tmp_path / name)
    corpus.append("sources", rows("a"))
    shutil.copytree(corpus.root, tmp_path / twin)
    assert ids(corpus) == ["a"]
    assert pa.Table.from_batches(next(corpus.batches("SELECT uri FROM sources")).to_batches()).num_rows == 1


def test_moved_corpus_opens(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "here")
    corpus.append("sources", rows("a"))
    shutil.move(corpus.root, tmp_path / "there #2")
    assert ids(Corpus.open(tmp_path / "there #2")) == ["a"]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_store_reads_and_writes_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    source = tmp_path / "file"
    source.write_bytes(b"content")
    store = Store(str(tmp_path / name))
    store.put(source, "sub/a.tar")
    assert (tmp_path / name / "sub" / "a.tar").read_bytes() == b"content"
    assert store.list_files() == ["sub/a.tar"]
    assert store.list_folders("") == ["sub"]
    assert store.size("sub/a.tar") == 7
    assert store.read_span("sub/a.tar", 3, 2) == b"te"
    store.remove("sub/a.tar")
    assert Store(str(tmp_path / name)).read_if_exists("sub/a.tar") is None
    assert sorted(os.listdir(tmp_path)) == sorted(["file", name])


@pytest.mark.parametrize("name", ["~", "~x", "file:", "a::b", "-x"])
def test_store_takes_a_relative_path_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert Store(name).root == str(tmp_path / name)


def test_store_decodes_a_file_uri(tmp_path: Path) -> None:
    assert Store((tmp_path / "a b%20").as_uri()).root == str(tmp_path / "a b%20")


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_sqlite_uri_opens_the_named_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "mlflow.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE marks (mark)")
    engine = create_engine(sqlite_uri(path))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM marks")).scalar() == 0
    engine.dispose()
    assert sqlite_path(sqlite_uri(path)) == path
    assert os.listdir(tmp_path) == [name]


@given(st.binary(min_size=1, max_size=20).filter(lambda name: b"/" not in name and name not in (b".", b"..")))
def test_every_file_name_survives_as_a_uri(name: bytes) -> None:
    path = os.fsdecode(b"/videos/" + name)
    uri = uri_of(path)
    assert local_path(uri) == path
    assert uri.encode("utf-8")  # tables and JSON store it


@given(st.text())
def test_printable_path_is_one_line_of_utf8(path: str) -> None:
    shown = printable(os.fsdecode(path.encode("utf-8", "surrogatepass")))
    assert shown.encode("utf-8") or not path
    assert not set(shown) & {chr(code) for code in (*range(32), 127)}


@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1
    )
)
def test_local_folder_decodes_file_uris_and_keeps_paths(names: list[str]) -> None:
    path = Path("/", *names)
    assert local_folder(path.as_uri(), "--run") == path
    assert local_folder(Path(path.as_uri()), "--run") == path  # pathlib makes file:/ of file:///
    assert local_folder(path, "--run") == path
    assert local_folder(f"./{names[0]}", "--run") == Path(names[0])


@pytest.mark.parametrize("url", ["s3://bucket/a b", "s3:///bucket", "gs://b", "HTTPS://host/x", "abfs+x://y"])
def test_local_folder_refuses_other_urls_also_after_pathlib(url: str) -> None:
    for spelling in (url, Path(url)):
        with pytest.raises(UsageError, match="has to be a local path") as caught:
            local_folder(spelling, "--corpus")
        assert caught.value.kind == "remote-path"
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///a/b.db", "sqlite:///{here}/a/b.db"),
        ("sqlite:///b.db?timeout=3", "sqlite:///{here}/b.db?timeout=3"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("sqlite:////a/b.db?timeout=3", "sqlite:////a/b.db?timeout=3"),
        ("sqlite://", "sqlite://"),
        ("postgresql://host/b.db", "postgresql://host/b.db"),
        ("http://host:5000", "http://host:5000"),
    ],
)
def test_relative_sqlite_url_becomes_absolute_and_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, absolute: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_sqlite_uri(uri) == absolute.format(here=tmp_path)
