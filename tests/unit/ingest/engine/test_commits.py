"""Commits: row order that survives crashes, duplicates, deletions, and pending sources."""

from pathlib import Path
from typing import Any

import pytest

from uniavgen.ingest.engine.clip_files import EXTENSIONS, ClipFiles
from uniavgen.ingest.engine.commits import Committer, PendingWork
from uniavgen.ingest.engine.step_cache import StepCache
from uniavgen.ingest.io.uris import Entry
from uniavgen.ingest.records import (
    Failure,
    MeasuredRows,
    Probe,
    Proposals,
    SourceRecord,
)
from uniavgen.shards.corpus.deletion import add_tombstones
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus, clip_id

PROBE = Probe(10.0, 64, 48, 25.0, "h264", "aac", True)
LOST = Failure("probe", "not-a-video", "no video")


def record(
    name: str, clips: int = 2, failure: Failure | None = None, uri: str = "", stamp: str = "1"
) -> SourceRecord:
    spans = [(i * 3.0, i * 3.0 + 2) for i in range(clips)]
    rows: list[dict[str, Any]] = [
        {
            "clip_id": clip_id(name, *span),
            "source_id": name,
            "start_s": span[0],
            "end_s": span[1],
            "speaker": "",
            "voice": None,
            "transcript": "",
            "words": [],
            "language": "",
            "versions": {"steps": "1"},
            **dict.fromkeys(SIGNALS),
        }
        for span in spans
    ]
    source = {"duration_s": 10.0, "width": 64, "shots": [{"label": "", "start_s": 0.0, "end_s": 10.0}]}
    made = SourceRecord(uri or f"/videos/{name}.mp4", name, stamp, 100, failure, step_seconds={"cut": 1.5})
    made.results = {Probe: PROBE, MeasuredRows: MeasuredRows(rows, source), Proposals: Proposals([])}
    return made


def commit(corpus: Corpus, records: list[SourceRecord], digest: str) -> None:
    Committer(corpus, digest).commit(records)


def counts(corpus: Corpus) -> tuple[int, int, int]:
    sources, clips, failures = (len(corpus.read(table)) for table in ("sources", "clips", "failures"))
    return sources, clips, failures


def pending(
    corpus: Corpus, uri: str, stamp: str, digest: str = "d1", retry: bool = False, step: str = ""
) -> PendingWork:
    return Committer(corpus, digest).pending([Entry(uri, stamp, 100)], retry, step)


def media_of(corpus: Corpus, row: dict) -> Path:
    path = corpus.media_path(row["clip_id"], "mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"video")
    return path


def test_commit_is_idempotent(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    committer = Committer(corpus, "d1")
    for _ in range(2):
        committer.commit([record("a"), record("b")])
    commit(corpus, [record("a")], "d1")
    assert counts(corpus) == (2, 4, 0)
    row = corpus.query("SELECT * FROM sources WHERE source_id = 'a'").to_pylist()[0]
    assert (row["digest"], row["error"], dict(row["step_seconds"]), row["stamp"]) == (
        "d1",
        "",
        {"cut": 1.5},
        "1",
    )


def test_clips_committed_before_a_crash_are_not_doubled(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    corpus.upsert(
        "clips", record("a").results[MeasuredRows].clips
    )  # the driver is killed here: no source row
    commit(corpus, [record("a")], "d1")
    assert counts(corpus) == (1, 2, 0)


def test_commit_deletes_clips_of_earlier_measurement_with_media(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a", clips=3)], "d1")
    stays, goes = (media_of(corpus, row) for row in record("a", clips=3).results[MeasuredRows].clips[1:])
    commit(corpus, [record("a", clips=2)], "d2")
    assert len(corpus.read("clips")) == 2
    assert stays.exists()
    assert not goes.exists()


def test_source_is_in_exactly_one_table(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    for expected in (1, 2):
        commit(corpus, [record("a", failure=LOST)], "d1")
        assert corpus.read("failures").to_pylist()[0]["attempts"] == expected
    commit(corpus, [record("a")], "d1")
    assert counts(corpus) == (1, 2, 0)
    commit(corpus, [record("a", failure=LOST)], "d2")
    assert counts(corpus) == (0, 0, 1)


def test_unreachable_source_keeps_its_rows(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a")], "d1")
    for kind in ("vanished", "unreachable"):
        commit(corpus, [record("a", failure=Failure("fetch", kind, "gone"))], "d2")
        assert counts(corpus) == (1, 2, 0)


def test_duplicate_becomes_failure_naming_the_first(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    committer = Committer(corpus, "d1")
    committer.commit([record("a")])
    copy = record("a", uri="/videos/copy.mp4")
    committer.commit([copy])
    assert counts(corpus) == (1, 2, 1)
    (row,) = corpus.read("failures").to_pylist()
    assert (row["uri"], row["error_type"], row["message"]) == (
        "/videos/copy.mp4",
        "duplicate",
        "same content as /videos/a.mp4",
    )
    found = pending(corpus, "/videos/copy.mp4", "1")
    assert (found.todo, found.duplicates) == ([], {"/videos/copy.mp4": "a"})


def test_two_concurrent_runs_commit_a_source_once(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    one, other = Committer(corpus, "d1"), Committer(Corpus.open(corpus.root), "d1")
    one.commit([record("a"), record("b", failure=LOST)])
    other.commit([record("a"), record("b", failure=LOST), record("a", uri="/videos/copy.mp4")])
    assert counts(corpus) == (1, 2, 2)
    failures = {
        row["uri"]: (row["error_type"], row["attempts"]) for row in corpus.read("failures").to_pylist()
    }
    assert failures == {"/videos/b.mp4": ("not-a-video", 2), "/videos/copy.mp4": ("duplicate", 1)}


def test_source_deleted_while_measured_is_not_committed(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    committer, a = Committer(corpus, "d1"), record("a")
    rows = a.results[MeasuredRows].clips
    committer.clip_files.start_cutting("a", {row["clip_id"]: 1 for row in rows})
    paths = [media_of(corpus, row) for row in rows]
    StepCache(corpus.root).save("a", "probe", "k", PROBE)
    add_tombstones(corpus.root, ["a"])
    committer.commit([a, record("b")])
    assert [row["uri"] for row in corpus.read("sources").to_pylist()] == ["/videos/b.mp4"]
    assert [row["error_type"] for row in corpus.read("failures").to_pylist()] == ["forgotten"]
    assert not any(path.exists() for path in paths)
    assert not StepCache(corpus.root).folder("a").exists()


def test_source_without_stored_result_fails_alone(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    gone = record("a")
    gone.results = {MeasuredRows: None, Probe: PROBE}
    commit(corpus, [gone, record("b")], "d1")
    assert counts(corpus) == (1, 2, 1)
    assert corpus.read("failures")["error_type"].to_pylist() == ["lost"]


def test_many_commits_are_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltalake import DeltaTable

    monkeypatch.setattr("uniavgen.ingest.engine.commits.COMPACT_FILES", 3)
    corpus = Corpus.create(tmp_path / "c")
    committer = Committer(corpus, "d1")
    for index in range(8):
        committer.commit([record(f"s{index}")])
    assert len(DeltaTable(str(corpus.root / "clips")).file_uris()) <= 4
    assert counts(corpus) == (8, 16, 0)


def test_pending_compares_uri_stamp_and_digest(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a"), record("b", failure=LOST)], "d1")
    found = Committer(corpus, "d1").pending([Entry("/videos/a.mp4", "1"), Entry("/videos/b.mp4", "1")], False)
    assert (found.todo, found.done, found.failed) == ([], 1, 1)
    # other settings: the source_id is still known without reading the file
    assert [(each.source_id, each.uri) for each in pending(corpus, "/videos/a.mp4", "1", "d2").todo] == [
        ("a", "/videos/a.mp4")
    ]
    # another stamp: the content may differ
    assert [each.source_id for each in pending(corpus, "/videos/a.mp4", "2").todo] == [""]
    # no stamp: the content may differ
    assert [each.source_id for each in pending(corpus, "/videos/a.mp4", "").todo] == [""]


def test_replaced_file_is_done_once_per_content(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a", uri="/videos/x.mp4", stamp="1")], "d1")
    commit(corpus, [record("b", uri="/videos/x.mp4", stamp="2")], "d1")
    assert [pending(corpus, "/videos/x.mp4", stamp).done for stamp in ("1", "2")] == [1, 1]


def test_failed_sources_are_retried_by_step(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a", failure=Failure("diarize", "timeout", "slow"))], "d1")
    uri = "/videos/a.mp4"
    assert pending(corpus, uri, "1").failed == 1
    assert len(pending(corpus, uri, "1", retry=True).todo) == 1
    assert len(pending(corpus, uri, "1", retry=True, step="diarize").todo) == 1
    assert pending(corpus, uri, "1", retry=True, step="cut").failed == 1
    assert len(pending(corpus, uri, "1", "d2").todo) == 1, "other settings are tried anew"


def test_retry_includes_sources_with_missing_clip_files(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a"), record("b")], "d1")
    for name in "ab":
        for row in record(name).results[MeasuredRows].clips:
            for extension in EXTENSIONS:
                media_of(corpus, row).with_name(f"{row['clip_id']}.{extension}").write_bytes(b"media")
    entries = [Entry(f"/videos/{name}.mp4", "1", 100) for name in "ab"]
    assert Committer(corpus, "d1").pending(entries, True).done == 2
    lost = corpus.media_path(record("b").results[MeasuredRows].clips[1]["clip_id"], "flac")
    lost.unlink()
    found = Committer(corpus, "d1").pending(entries, True)
    assert ([each.source_id for each in found.todo], found.done) == (["b"], 1)
    assert Committer(corpus, "d1").pending(entries, False).done == 2
    files = ClipFiles(corpus.root, "run")
    recipes = {row["clip_id"]: 1 for row in record("b").results[MeasuredRows].clips}
    files.start_cutting("b", recipes)
    for clip in recipes:
        files.mark_cut("b", clip)
    assert files.start_cutting("b", recipes, ("mp4", "flac")) == {lost.name.partition(".")[0]}


def test_uncommitted_media_of_dead_run_is_deleted(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    committer = Committer(corpus, "d1")
    committer.commit([record("a")])
    paths = {}
    for name in ("a", "b"):
        rows = record(name).results[MeasuredRows].clips
        committer.clip_files.start_cutting(name, {row["clip_id"]: 1 for row in rows})
        paths[name] = [media_of(corpus, row) for row in rows]
    Committer(corpus, "d1").delete_uncommitted(lambda owner: False)
    assert [path.exists() for path in paths["a"] + paths["b"]] == [True, True, False, False]


def test_compact_merges_files_and_keeps_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.create(tmp_path / "c")
    for index in range(6):
        corpus.append("failures", [{"uri": str(index), "attempts": 1}])
    corpus.compact("failures", 100)
    from deltalake import DeltaTable

    table = str(corpus.root / "failures")
    assert len(DeltaTable(table).file_uris()) == 6
    corpus.compact("failures", 3)
    assert len(DeltaTable(table).file_uris()) == 1
    assert sorted(corpus.read("failures")["uri"].to_pylist()) == [str(index) for index in range(6)]
    assert len(list((corpus.root / "failures").glob("*.parquet"))) == 7, (
        "a reader that has started needs the old files"
    )
    monkeypatch.setattr("uniavgen.shards.corpus.tables.VACUUM_AFTER_HOURS", 0)
    corpus.append("failures", [{"uri": "6", "attempts": 1}])
    corpus.compact("failures", 1)
    assert len(list((corpus.root / "failures").glob("*.parquet"))) == 1
    assert len(corpus.read("failures")) == 7


DIFFERS = Failure("cut", "clip-differs", "its sound is not the analysed one: lag +120 ms")


def with_failed_clip(name: str, number: int = 1, failure: Failure = DIFFERS) -> tuple[SourceRecord, str]:
    """A record one of whose clips could not be cut, and the id of that clip."""
    made = record(name, clips=3)
    clip: str = made.results[MeasuredRows].clips[number]["clip_id"]
    made.clip_failures = {clip: failure}
    return made, clip


def test_failed_clip_costs_itself_alone(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    made, clip = with_failed_clip("a")
    files = {row["clip_id"]: media_of(corpus, row) for row in made.results[MeasuredRows].clips}
    ClipFiles(corpus.root, "run").start_cutting("a", dict.fromkeys(files, 1))
    commit(corpus, [made, record("b")], "d1")
    assert counts(corpus) == (2, 4, 1)
    (row,) = corpus.read("failures").to_pylist()
    assert (row["uri"], row["source_id"], row["stage"], row["error_type"]) == (
        f"clip:{clip}",
        "a",
        "cut",
        "clip-differs",
    )
    assert "+120 ms" in row["message"]
    assert clip not in corpus.read("clips")["clip_id"].to_pylist()
    assert {name for name, path in files.items() if path.exists()} == files.keys() - {clip}


def test_failed_clips_are_done_until_they_are_retried(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    made, _ = with_failed_clip("a")
    commit(corpus, [made, record("b")], "d1")
    work = pending(corpus, made.uri, "1")
    assert (len(work.todo), work.done, work.failed_clips) == (0, 1, 1)
    files = ClipFiles(corpus.root)
    for row in corpus.read("clips").to_pylist():
        for extension in EXTENSIONS:
            files.write(row["clip_id"], extension, b"video")
    assert not pending(corpus, "/videos/b.mp4", "1", retry=True).todo
    tried = [len(pending(corpus, made.uri, "1", retry=True, step=step).todo) for step in ("", "cut", "faces")]
    assert tried == [1, 1, 0]
    # it fails again, then it can be cut
    commit(corpus, [with_failed_clip("a")[0]], "d1")
    assert corpus.read("failures")["attempts"].to_pylist() == [2]
    commit(corpus, [record("a", clips=3)], "d1")
    assert counts(corpus) == (2, 5, 0)


def test_clip_that_fails_under_other_settings_leaves_the_corpus(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a", clips=3)], "d1")
    committer = Committer(corpus, "d2")
    committer.commit([with_failed_clip("a", 0)[0]])
    committer.commit([with_failed_clip("a", 2)[0]])
    assert counts(corpus) == (1, 2, 1)
    commit(corpus, [record("a", failure=LOST)], "d3")
    assert counts(corpus) == (0, 0, 1)
    assert corpus.read("failures")["uri"].to_pylist() == ["/videos/a.mp4"]


def test_failed_clip_is_committed_before_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.create(tmp_path / "c")
    committer = Committer(corpus, "d1")
    append = corpus.append

    def killed(table: str, rows: list[dict[str, Any]]) -> int:
        if table == "sources":
            raise KeyboardInterrupt
        return append(table, rows)

    monkeypatch.setattr(corpus, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        committer.commit([with_failed_clip("a")[0]])
    assert counts(corpus) == (0, 2, 1)
    monkeypatch.undo()
    commit(corpus, [with_failed_clip("a")[0]], "d1")
    assert counts(corpus) == (1, 2, 1)


def test_bad_line_of_a_list_is_a_failure_row_with_its_number(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    bad = Entry("l.txt: line 3", problem="the line has a zero byte", origin="line 3 of l.txt")
    committer = Committer(corpus, "d1")
    work = committer.pending([bad], retry=False)
    missing = SourceRecord(
        "/m.mp4", failure=Failure("fetch", "vanished", "gone\udce9"), origin="line 4 of l.txt"
    )
    committer.commit([*work.todo, missing, record("a")])
    rows = {row["uri"]: row for row in corpus.read("failures").to_pylist()}
    assert rows["l.txt: line 3"]["message"] == "the line has a zero byte (line 3 of l.txt)"
    assert rows["l.txt: line 3"]["error_type"] == "bad-line"
    assert rows["/m.mp4"]["message"] == r"gone\xe9 (line 4 of l.txt)"
    assert counts(corpus)[0] == 1
    assert Committer(corpus, "d1").pending([bad], retry=False).failed == 1
