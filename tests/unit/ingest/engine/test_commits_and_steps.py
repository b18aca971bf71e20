"""Rows are committed in an order that a crash cannot spoil; a bad source ends alone; what is done is known without reading."""

import errno
from pathlib import Path
from typing import Any, ClassVar

import pytest

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.engine.clip_files import EXTENSIONS, ClipMedia
from uniavgen.ingest.engine.commits import Ledger, Work
from uniavgen.ingest.engine.run_state import Board
from uniavgen.ingest.engine.step import Runner, Step
from uniavgen.ingest.engine.step_cache import Results
from uniavgen.ingest.engine.watchdog import Watchdog
from uniavgen.ingest.io.uris import Entry
from uniavgen.ingest.measures.decode_pass import frames_of_interest
from uniavgen.ingest.measures.steps import check_complete
from uniavgen.ingest.pipeline import ingest
from uniavgen.ingest.records import (
    Failure,
    LocalCopy,
    MeasuredRows,
    Probe,
    Proposals,
    SourceRecord,
    SpokenWord,
)
from uniavgen.shards.corpus.deletion import add_tombstones
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus, clip_id
from uniavgen.shards.errors import UserError

PROBE = Probe(10.0, 64, 48, 25.0, "h264", "aac", True)
LOST = Failure("probe", "not-a-video", "no film")


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
    made = SourceRecord(uri or f"/videos/{name}.mp4", name, stamp, 100, failure, {"cut": 1.5})
    made.results = {Probe: PROBE, MeasuredRows: MeasuredRows(rows, source), Proposals: Proposals([])}
    return made


def commit(corpus: Corpus, records: list[SourceRecord], digest: str) -> None:
    Ledger(corpus, digest).commit(records)


def counts(corpus: Corpus) -> tuple[int, int, int]:
    sources, clips, failures = (len(corpus.read(table)) for table in ("sources", "clips", "failures"))
    return sources, clips, failures


def work(
    corpus: Corpus, uri: str, stamp: str, digest: str = "d1", retry: bool = False, step: str = ""
) -> Work:
    return Ledger(corpus, digest).work([Entry(uri, stamp, 100)], retry, step)


def media_of(corpus: Corpus, row: dict) -> Path:
    path = corpus.media_path(row["clip_id"], "mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"film")
    return path


def test_committing_twice_is_committing_once(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    ledger = Ledger(corpus, "d1")
    for _ in range(2):
        ledger.commit([record("a"), record("b")])
    commit(corpus, [record("a")], "d1")
    assert counts(corpus) == (2, 4, 0)
    row = corpus.query("SELECT * FROM sources WHERE source_id = 'a'").to_pylist()[0]
    assert (row["digest"], row["error"], dict(row["step_seconds"]), row["stamp"]) == (
        "d1",
        "",
        {"cut": 1.5},
        "1",
    )


def test_clips_committed_before_a_crash_are_not_committed_again_after_it(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    corpus.upsert("clips", record("a").results[MeasuredRows].clips)  # and the driver is killed: no source row
    commit(corpus, [record("a")], "d1")
    assert counts(corpus) == (1, 2, 0)


def test_clips_of_an_earlier_measurement_go_with_their_media(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a", clips=3)], "d1")
    stays, goes = (media_of(corpus, row) for row in record("a", clips=3).results[MeasuredRows].clips[1:])
    commit(corpus, [record("a", clips=2)], "d2")
    assert len(corpus.read("clips")) == 2
    assert stays.exists()
    assert not goes.exists()


def test_a_source_is_in_one_table_only_whichever_way_it_changes(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    for expected in (1, 2):
        commit(corpus, [record("a", failure=LOST)], "d1")
        assert corpus.read("failures").to_pylist()[0]["attempts"] == expected
    commit(corpus, [record("a")], "d1")
    assert counts(corpus) == (1, 2, 0)
    commit(corpus, [record("a", failure=LOST)], "d2")
    assert counts(corpus) == (0, 0, 1)


def test_what_was_measured_stays_when_its_file_is_out_of_reach(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a")], "d1")
    for kind in ("vanished", "unreachable"):
        commit(corpus, [record("a", failure=Failure("fetch", kind, "gone"))], "d2")
        assert counts(corpus) == (1, 2, 0)


def test_the_second_of_two_equal_contents_becomes_a_failure_that_names_the_first(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    ledger = Ledger(corpus, "d1")
    ledger.commit([record("a")])
    copy = record("a", uri="/videos/copy.mp4")
    ledger.commit([copy])
    assert counts(corpus) == (1, 2, 1)
    (row,) = corpus.read("failures").to_pylist()
    assert (row["uri"], row["error_type"], row["message"]) == (
        "/videos/copy.mp4",
        "duplicate",
        "same content as /videos/a.mp4",
    )
    found = work(corpus, "/videos/copy.mp4", "1")
    assert (found.todo, found.copies) == ([], {"/videos/copy.mp4": "a"})


def test_two_runs_at_once_commit_a_source_once(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    one, other = Ledger(corpus, "d1"), Ledger(Corpus.open(corpus.root), "d1")
    one.commit([record("a"), record("b", failure=LOST)])
    other.commit([record("a"), record("b", failure=LOST), record("a", uri="/videos/copy.mp4")])
    assert counts(corpus) == (1, 2, 2)
    failures = {
        row["uri"]: (row["error_type"], row["attempts"]) for row in corpus.read("failures").to_pylist()
    }
    assert failures == {"/videos/b.mp4": ("not-a-video", 2), "/videos/copy.mp4": ("duplicate", 1)}


def test_what_is_forgotten_while_it_is_measured_does_not_come_back(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    ledger, a = Ledger(corpus, "d1"), record("a")
    rows = a.results[MeasuredRows].clips
    ledger.media.begin("a", {row["clip_id"]: 1 for row in rows})
    paths = [media_of(corpus, row) for row in rows]
    Results(corpus.root).save("a", "probe", "k", PROBE)
    add_tombstones(corpus.root, ["a"])
    ledger.commit([a, record("b")])
    assert [row["uri"] for row in corpus.read("sources").to_pylist()] == ["/videos/b.mp4"]
    assert [row["error_type"] for row in corpus.read("failures").to_pylist()] == ["forgotten"]
    assert not any(path.exists() for path in paths)
    assert not Results(corpus.root).folder("a").exists()


def test_a_source_whose_results_are_gone_fails_alone(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    gone = record("a")
    gone.results = {MeasuredRows: None, Probe: PROBE}
    commit(corpus, [gone, record("b")], "d1")
    assert counts(corpus) == (1, 2, 1)
    assert corpus.read("failures")["error_type"].to_pylist() == ["lost"]


def test_many_commits_keep_the_tables_files_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deltalake import DeltaTable

    monkeypatch.setattr("uniavgen.ingest.engine.commits.MANY_FILES", 3)
    corpus = Corpus.create(tmp_path / "c")
    ledger = Ledger(corpus, "d1")
    for index in range(8):
        ledger.commit([record(f"s{index}")])
    assert len(DeltaTable(str(corpus.root / "clips")).file_uris()) <= 4
    assert counts(corpus) == (8, 16, 0)


def test_what_is_done_is_known_by_name_and_stamp_alone(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a"), record("b", failure=LOST)], "d1")
    found = Ledger(corpus, "d1").work([Entry("/videos/a.mp4", "1"), Entry("/videos/b.mp4", "1")], False)
    assert (found.todo, found.done, found.failed) == ([], 1, 1)
    # other settings: the content is known still, and need not be read to be named
    assert [(each.source_id, each.uri) for each in work(corpus, "/videos/a.mp4", "1", "d2").todo] == [
        ("a", "/videos/a.mp4")
    ]
    # another stamp: the content may be another
    assert [each.source_id for each in work(corpus, "/videos/a.mp4", "2").todo] == [""]
    # a store that gives no stamp says nothing
    assert [each.source_id for each in work(corpus, "/videos/a.mp4", "").todo] == [""]


def test_a_replaced_file_is_done_once_for_each_content(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a", uri="/videos/x.mp4", stamp="1")], "d1")
    commit(corpus, [record("b", uri="/videos/x.mp4", stamp="2")], "d1")
    assert [work(corpus, "/videos/x.mp4", stamp).done for stamp in ("1", "2")] == [1, 1]


def test_failures_wait_for_retry_and_for_their_own_step(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a", failure=Failure("diarize", "timeout", "slow"))], "d1")
    uri = "/videos/a.mp4"
    assert work(corpus, uri, "1").failed == 1
    assert len(work(corpus, uri, "1", retry=True).todo) == 1
    assert len(work(corpus, uri, "1", retry=True, step="diarize").todo) == 1
    assert work(corpus, uri, "1", retry=True, step="cut").failed == 1
    assert len(work(corpus, uri, "1", "d2").todo) == 1, "other settings are another try"


def test_a_source_whose_clips_lost_files_is_done_again_when_asked(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a"), record("b")], "d1")
    for name in "ab":
        for row in record(name).results[MeasuredRows].clips:
            for extension in EXTENSIONS:
                media_of(corpus, row).with_name(f"{row['clip_id']}.{extension}").write_bytes(b"media")
    entries = [Entry(f"/videos/{name}.mp4", "1", 100) for name in "ab"]
    assert Ledger(corpus, "d1").work(entries, True).done == 2
    lost = corpus.media_path(record("b").results[MeasuredRows].clips[1]["clip_id"], "flac")
    lost.unlink()
    found = Ledger(corpus, "d1").work(entries, True)
    assert ([each.source_id for each in found.todo], found.done) == (["b"], 1)
    assert Ledger(corpus, "d1").work(entries, False).done == 2
    media = ClipMedia(corpus.root, "run")
    recipes = {row["clip_id"]: 1 for row in record("b").results[MeasuredRows].clips}
    media.begin("b", recipes)
    for clip in recipes:
        media.done("b", clip)
    assert media.begin("b", recipes, ("mp4", "flac")) == {lost.name.partition(".")[0]}


def test_media_that_a_dead_run_left_goes_unless_its_clips_are_committed(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    ledger = Ledger(corpus, "d1")
    ledger.commit([record("a")])
    paths = {}
    for name in ("a", "b"):
        rows = record(name).results[MeasuredRows].clips
        ledger.media.begin(name, {row["clip_id"]: 1 for row in rows})
        paths[name] = [media_of(corpus, row) for row in rows]
    Ledger(corpus, "d1").sweep(lambda owner: False)
    assert [path.exists() for path in paths["a"] + paths["b"]] == [True, True, False, False]


def test_a_thousand_commits_leave_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        "who reads now finds what it began with"
    )
    monkeypatch.setattr("uniavgen.shards.corpus.tables.VACUUM_AFTER_HOURS", 0)
    corpus.append("failures", [{"uri": "6", "attempts": 1}])
    corpus.compact("failures", 1)
    assert len(list((corpus.root / "failures").glob("*.parquet"))) == 1
    assert len(corpus.read("failures")) == 7


class Raising(Step):
    gives: ClassVar[dict[str, type]] = {"measure": MeasuredRows}
    error: Exception

    def __call__(self, record: SourceRecord, wanted: tuple[str, ...]) -> dict[str, Any]:
        raise self.error


def run_raising(tmp_path: Path, error: Exception, uri: Path) -> SourceRecord:
    step = Raising(IngestConfig(), tmp_path, tmp_path)
    step.error = error
    runner = Runner([step], [], Results(tmp_path), Watchdog(tmp_path), Board())
    return runner.run(SourceRecord(str(uri), "ab" * 16))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("bad", kind="cut-failed"), "cut-failed"),
        (OSError(errno.ENOSPC, "No space left on device"), "no-space"),
        (UserError("decoding failed: No space left on device", kind="decode-failed"), "no-space"),
        (PermissionError("not yours"), "PermissionError"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError"),
    ],
)
def test_any_error_becomes_the_source_s_failure_and_later_steps_leave_it_alone(
    tmp_path: Path, error: Exception, kind: str
) -> None:
    there = tmp_path / "a.mp4"
    there.touch()
    found = run_raising(tmp_path, error, there)
    assert found.failure is not None
    assert (found.failure.stage, found.failure.error_type) == ("measure", kind)


def test_an_error_on_a_file_that_went_away_says_so(tmp_path: Path) -> None:
    found = run_raising(tmp_path, UserError("broken pipe", kind="decode-failed"), tmp_path / "gone.mp4")
    assert found.failure is not None
    assert found.failure.error_type == "vanished"
    assert "--retry" in found.failure.message


def test_a_record_travels_without_its_results() -> None:
    sent = record("a", failure=LOST)
    got = SourceRecord.from_json(sent.to_json())
    assert (got.uri, got.source_id, got.stamp, got.bytes, got.failure, got.step_seconds) == (
        sent.uri,
        sent.source_id,
        sent.stamp,
        sent.bytes,
        sent.failure,
        sent.step_seconds,
    )
    assert not got.results
    with pytest.raises(KeyError):
        got.result(LocalCopy)


def test_a_file_that_holds_much_less_than_it_declares_is_truncated() -> None:
    check_complete(record("a"), 9.6, 0.0)
    check_complete(record("a"), 0.0, 9.6)
    with pytest.raises(UserError, match=r"declares 10\.0 s and holds 5\.0 s"):
        check_complete(record("a"), 5.0, 4.0)


def test_faces_are_looked_for_early_and_around_words() -> None:
    wanted = frames_of_interest([SpokenWord("late", 100.0, 100.5, 1.0)], 60.0, 0.2)
    assert [wanted(at) for at in (0.0, 59.0, 70.0, 99.9, 100.6, 110.0)] == [
        True,
        True,
        False,
        True,
        True,
        False,
    ]


def test_the_digest_names_what_is_measured_and_not_how_fast() -> None:
    plain = IngestConfig().digest()
    assert (
        IngestConfig.model_validate(
            {"stages": {"speech": {"workers": 4}}, "limits": {"probe_seconds": 5}}
        ).digest()
        == plain
    )
    assert IngestConfig.model_validate({"clips": {"max_s": 8}}).digest() != plain


def test_a_step_that_is_none_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no step 'dairize'"):
        ingest(["x"], tmp_path / "corpus", retry=True, step="dairize")
