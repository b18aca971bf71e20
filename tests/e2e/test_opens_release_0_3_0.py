"""A corpus and a run of release 0.3.0: only what changed is measured again; results are the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from release_0_3_0 import SPLIT, ReleaseOutput, history_is_available, make_release_output, training_words
from running import uniavgen

from uniavgen.orchestration.commands.verify_resume import compare
from uniavgen.shards.corpus.tables import KEYS, Corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def release(request: pytest.FixtureRequest) -> ReleaseOutput:
    if not history_is_available():
        pytest.skip("release 0.3.0 is made from the repository's history, which this checkout lacks")
    return make_release_output(request.config.cache.mkdir("uniavgen-release-0.3.0"))


@pytest.fixture
def corpus(release: ReleaseOutput, tmp_path: Path) -> Path:
    """A copy of the corpus; its source URIs point to the videos beside the original."""
    return shutil.copytree(release.corpus, tmp_path / "corpus")


CHANGED = {"fetch", "probe", "repair", "measure", "cut"}
"""Steps that run on a source of release 0.3.0 whose file was read right, and in which one person speaks. The
media files that `cut` finds are kept."""


def clip_rows(corpus: Path) -> list[dict[str, Any]]:
    """Rows of the clips table without what names the code that measured them."""
    rows = Corpus.open(corpus).query("SELECT * EXCLUDE (versions) FROM clips ORDER BY clip_id").to_pylist()
    assert rows
    return rows


def test_ingest_measures_only_what_changed(release: ReleaseOutput, corpus: Path) -> None:
    old = clip_rows(release.corpus)
    media = {path: path.stat().st_mtime_ns for path in (corpus / "media").rglob("*.[mf]*[4c]")}
    summary = uniavgen("ingest", release.videos, "--corpus", corpus, *release.tracking)
    assert (summary["sources"], summary["failures"]) == (2, {})
    assert {name for name, step in summary["steps"].items() if step["done"]} <= CHANGED
    assert summary["steps"]["transcribe"]["reused"] == 2
    for before, after in zip(old, clip_rows(corpus), strict=True):  # new columns are null before
        assert {name: after[name] for name, value in before.items() if value is not None} == {
            name: value for name, value in before.items() if value is not None
        }
    assert media == {path: path.stat().st_mtime_ns for path in (corpus / "media").rglob("*.[mf]*[4c]")}
    again = uniavgen("ingest", release.videos, "--corpus", corpus, *release.tracking)
    assert (again["sources"], again["skipped_done"], again["failures"]) == (0, 2, {})


def test_curate_decides_the_same(release: ReleaseOutput, corpus: Path) -> None:
    words = ("--policy", release.policy, *SPLIT, *release.tracking)
    uniavgen("curate", "--corpus", corpus, *words)
    old, new = (
        Corpus.open(path).query("SELECT * FROM decisions ORDER BY clip_id").to_pylist()
        for path in (release.corpus, corpus)
    )
    assert {row["split"] for row in old if row["kept"]} == {"train", "val"}
    assert old == new


def test_curate_anew_gives_the_same_verdicts(release: ReleaseOutput, corpus: Path) -> None:
    """Without the decisions of 0.3.0 the split is made by the new rules, which lose no clip."""
    shutil.rmtree(corpus / "decisions")
    uniavgen("curate", "--corpus", corpus, "--policy", release.policy, *SPLIT, *release.tracking)
    columns = "clip_id, kept, reason, failed_rules, policy_digest"
    old, new = (
        Corpus.open(path).query(f"SELECT {columns} FROM decisions ORDER BY clip_id").to_pylist()
        for path in (release.corpus, corpus)
    )
    assert old == new
    splits = Corpus.open(corpus).query("SELECT DISTINCT split FROM decisions WHERE kept").to_pylist()
    assert {row["split"] for row in splits} == {"train", "val"}


def test_shard_writes_the_same_bytes(release: ReleaseOutput, corpus: Path) -> None:
    shutil.rmtree(corpus / "shards")
    uniavgen("shard", "--corpus", corpus, *release.tracking)
    names = sorted(path.name for path in (release.corpus / "shards").glob("*.tar"))
    assert names == sorted(path.name for path in (corpus / "shards").glob("*.tar"))
    assert len(names) >= 2
    for name in names:
        assert (corpus / "shards" / name).read_bytes() == (release.corpus / "shards" / name).read_bytes()


def test_an_interrupted_stage_resumes_bit_for_bit(release: ReleaseOutput, tmp_path: Path) -> None:
    run = shutil.copytree(release.interrupted, tmp_path / "run")
    summary = uniavgen(*training_words(release, run), *release.tracking)
    assert summary["stages"][0]["ran"]
    compared = compare(release.straight / "joint", run / "joint")
    assert {one.what for one in compared} >= {"losses", "sample ids", "weights"}
    assert [one for one in compared if not one.equal] == []


def test_export_writes_the_same_bytes(release: ReleaseOutput, tmp_path: Path) -> None:
    out = tmp_path / "export"
    uniavgen("export", "--run", release.straight, "--out", out, *release.tracking)
    old = {path.name: path.read_bytes() for path in (release.folder / "export").rglob("*.safetensors")}
    assert old
    assert {path.name: path.read_bytes() for path in out.rglob("*.safetensors")} == old


def test_every_table_has_the_columns_of_the_release(release: ReleaseOutput) -> None:
    from deltalake import DeltaTable

    from uniavgen.shards.corpus.tables import schema

    for table in KEYS:
        path = release.corpus / table
        if path.exists():
            assert {field.name for field in DeltaTable(str(path)).schema().fields} <= {*schema(table).names}
