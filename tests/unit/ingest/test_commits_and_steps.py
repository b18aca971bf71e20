"""Rows are committed in an order that a crash cannot spoil; a bad source ends alone."""

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.commits import commit
from ingest.config import IngestConfig
from ingest.pipeline import Progress, ingest
from ingest.records import Failure, Probe, SourceRecord, Span
from ingest.steps import check_complete, frames_of_interest, run_step
from shards.corpus import SIGNALS, Corpus, clip_id
from shards.errors import UserError


def record(name: str, clips: int = 2, failure: Failure | None = None) -> SourceRecord:
    probe = Probe(10.0, 64, 48, 25.0, "h264", "aac", True)
    spans = [(i * 3.0, i * 3.0 + 2) for i in range(clips)]
    rows: list[dict[str, Any]] = [
        {"clip_id": clip_id(name, *span), "source_id": name, "start_s": span[0], "end_s": span[1], "speaker": "", "voice": None,
         "transcript": "", "words": [], "language": "", "versions": {"steps": "1"}, **dict.fromkeys(SIGNALS)}
        for span in spans
    ]  # fmt: skip
    return SourceRecord(
        f"/videos/{name}.mp4", name, probe, shots=[Span(0, 10.0)], clips=rows, failure=failure, step_seconds={"cut": 1.5}
    )


def media_of(corpus: Corpus, row: dict) -> Path:
    path = corpus.media_path(row["clip_id"], "mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"film")
    return path


def test_committing_twice_is_committing_once(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    for _ in range(2):
        commit(corpus, [record("a"), record("b")], "d1")
    assert (len(corpus.read("sources")), len(corpus.read("clips"))) == (2, 4)
    row = corpus.query("SELECT * FROM sources WHERE source_id = 'a'").to_pylist()[0]
    assert (row["digest"], row["error"], dict(row["step_seconds"])) == ("d1", "", {"cut": 1.5})


def test_clips_of_an_earlier_measurement_go_with_their_media(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    commit(corpus, [record("a", clips=3)], "d1")
    stays, goes = (media_of(corpus, row) for row in record("a", clips=3).clips[1:])
    commit(corpus, [record("a", clips=2)], "d2")
    assert len(corpus.read("clips")) == 2
    assert stays.exists()
    assert not goes.exists()


def test_a_source_is_in_one_table_only_whichever_way_it_changes(tmp_path: Path) -> None:
    corpus = Corpus.create(tmp_path / "c")
    lost = Failure("probe", "not-a-video", "no film")
    for expected in (1, 2):
        commit(corpus, [record("a", failure=lost)], "d1")
        assert corpus.read("failures").to_pylist()[0]["attempts"] == expected
    commit(corpus, [record("a")], "d1")
    assert (len(corpus.read("sources")), len(corpus.read("failures"))) == (1, 0)
    commit(corpus, [record("a", failure=lost)], "d2")
    assert (len(corpus.read("sources")), len(corpus.read("clips")), len(corpus.read("failures"))) == (0, 0, 1)


class Raising:
    name = "cut"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, record: SourceRecord) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("bad", kind="cut-failed"), "cut-failed"),
        (OSError(errno.ENOSPC, "No space left on device"), "no-space"),
        (FileNotFoundError("gone"), "FileNotFoundError"),
        (ZeroDivisionError("by zero"), "ZeroDivisionError"),
    ],
)
def test_any_error_becomes_the_source_s_failure_and_later_steps_leave_it_alone(error: Exception, kind: str) -> None:
    found = run_step(Raising(error), record("a"))
    assert found.failure is not None
    assert (found.failure.stage, found.failure.error_type) == ("cut", kind)
    assert run_step(Raising(ValueError("again")), found).failure == found.failure


def test_a_record_survives_its_way_between_processes() -> None:
    sent = record("a")
    sent.pcm = np.arange(5, dtype=np.int16)
    got = SourceRecord.unpack(sent.pack())
    assert got.pcm is not None
    assert got.pcm.tolist() == [0, 1, 2, 3, 4]
    assert (got.probe, got.clips, got.shots) == (sent.probe, sent.clips, sent.shots)


def test_a_file_that_holds_much_less_than_it_declares_is_truncated() -> None:
    check_complete(record("a"), 9.6)
    with pytest.raises(UserError, match=r"declares 10\.0 s and holds 5\.0 s"):
        check_complete(record("a"), 5.0)


def test_faces_are_looked_for_early_and_around_words() -> None:
    from ingest.records import SpokenWord

    found = record("a")
    found.words = [SpokenWord("late", 100.0, 100.5, 1.0)]
    wanted = frames_of_interest(found, 60.0, 0.2)
    assert [wanted(at) for at in (0.0, 59.0, 70.0, 99.9, 100.6, 110.0)] == [True, True, False, True, True, False]


def test_the_digest_names_what_is_measured_and_not_how_fast() -> None:
    plain = IngestConfig().digest()
    assert IngestConfig.model_validate({"stages": {"speech": {"workers": 4}}, "limits": {"probe_seconds": 5}}).digest() == plain
    assert IngestConfig.model_validate({"clips": {"max_s": 8}}).digest() != plain


def test_sources_that_cannot_be_read_end_as_failures_without_any_worker(tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("gone.mp4\n")
    told: list[Progress] = []
    summary = ingest([str(listing)], tmp_path / "corpus", on_progress=told.append)
    assert (summary.failures, [p.done for p in told]) == ({"unreadable": 1}, [1])
    (row,) = Corpus.open(tmp_path / "corpus").read("failures").to_pylist()
    assert row["uri"].endswith("gone.mp4")
