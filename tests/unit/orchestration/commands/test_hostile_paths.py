"""A corpus in a folder whose name looks like URLs, patterns, options: decide, shard, read, report, forget."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from uniavgen.curation.deletion import delete, find_source
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.curation.policy.what_if import explain
from uniavgen.curation.report.page import write_report
from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.orchestration.tracking.mlflow_runs import open_run
from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.uris import local_path, uri_of
from uniavgen.shards.write.publish import publish_shards
from uniavgen.shards.write.verify import verify_shards
from uniavgen.shards.write.writer import write_shards

Make = Callable[..., Any]

SIGNS = " - a  b é日本 #1?{x,y}\"50%'*&;:~$HOME e\u0301 "
"""One name with every sign that a corpus's path may have."""


def in_order(corpus: Corpus) -> list[str]:
    """Keys of all samples that the corpus's shards give."""
    keys: list[str] = []
    for split in ("train", "val"):
        stream = SampleStream(str(corpus.root / "shards"), split)
        keys += [stream.sample_by_index(index).key for index in range(len(stream))]
    return sorted(keys)


@pytest.mark.parametrize("name", [SIGNS, "q?y::"])
def test_every_step_works_in_a_folder_of_any_name(
    tmp_path: Path, make_corpus: Make, make_clip: Make, name: str
) -> None:
    rows = [make_clip(person, 3.0 * i, person) for person in "abcd" for i in range(2)]
    corpus: Corpus = make_corpus(rows, name=f"{name}/corpus")
    decide(corpus, load_policy("default"))
    clip = rows[0]["clip_id"]
    assert explain(corpus, load_policy("default"), clip)
    shards = corpus.root / "shards"
    write_shards(corpus, ShardConfig(), caption=lambda row: ("a caption", "test"))
    assert verify_shards(corpus, ShardConfig()).defects == ()
    assert in_order(corpus) == sorted(row["clip_id"] for row in rows)
    publish_shards(shards, str(tmp_path / name / f"copy {name}"))
    copy = SampleStream(str(tmp_path / name / f"copy {name}"))
    assert copy.sample_by_index(0).video == SampleStream(str(shards)).sample_by_index(0).video
    assert clip in write_report(corpus).page.read_text()
    delete(corpus, find_source(corpus, "/videos/a.mp4"))
    assert corpus.query("SELECT count(*) AS n FROM clips").to_pylist() == [{"n": 6}]
    assert sorted(os.listdir(tmp_path / name)) == sorted(["corpus", f"copy {name}"])


@pytest.mark.parametrize("name", [SIGNS, "my%20corpus"])
def test_tracking_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    config = TrackingConfig(folder=str(tmp_path / name), system_metrics_s=0)
    (tmp_path / "page.html").write_text("page")
    with open_run(config, tmp_path / "home", "test", "") as run:
        run.metrics({"a": 1.0})
        run.artifact(tmp_path / "page.html", "report")
    assert len(list((tmp_path / name / "artifacts").rglob("page.html"))) == 1
    run.remove_artifacts("report")
    assert list((tmp_path / name / "artifacts").rglob("page.html")) == []
    with closing(sqlite3.connect(tmp_path / name / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM metrics").fetchone() == (1,)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "home", "page.html"])


def test_source_is_found_by_any_name_of_it(tmp_path: Path, make_corpus: Make, make_clip: Make) -> None:
    corpus = make_corpus([make_clip("a", 0.0, "a"), make_clip("b", 0.0, "b")])
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 #%41.mp4")
    uri = uri_of(path)
    assert local_path(uri) == path
    source = corpus.query("SELECT * FROM sources WHERE source_id = 'a'").to_pylist()[0]
    corpus.upsert("sources", [source | {"uri": uri}])
    for name in (path, uri, os.path.basename(path), os.path.relpath(path)):
        assert find_source(corpus, name).sources == {"a"}
