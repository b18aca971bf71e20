"""Ingest under attack: killed in the middle, fed with rubbish, out of disk; nothing is lost and nothing comes twice."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ingest.config import IngestConfig
from ingest.media import ffmpeg_path
from ingest.pipeline import IngestSummary, ingest
from shards.corpus import Corpus
from shards.errors import UserError

pytestmark = pytest.mark.slow

SOURCES = 6
DRIVER = """
import sys
from ingest.config import IngestConfig
from ingest.pipeline import ingest
if __name__ == "__main__":
    ingest([sys.argv[1]], sys.argv[2], IngestConfig(commit_seconds=0), on_progress=lambda p: print(p.uri, flush=True))
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six short silent films that differ, a copy of one, a text file and an empty file with a video's name."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(SOURCES):
        picture = f"testsrc2=s=128x96:r=25:d={3 + index}"
        command = [ffmpeg_path(), "-loglevel", "error", "-f", "lavfi", "-i", picture, "-pix_fmt", "yuv420p"]
        subprocess.run([*command, str(folder / f"film{index}.mp4")], check=True, timeout=60)
    shutil.copy(folder / "film0.mp4", folder / "film0 again.mp4")
    (folder / "text.mp4").write_text("no film")
    (folder / "empty.mov").touch()
    return folder


def contents(corpus: Corpus) -> tuple[list[str], list[tuple[str, float, float]], list[str]]:
    """Everything a run decides: sources, clips, failures; with the files of each clip checked on the way."""
    clips = corpus.query("SELECT clip_id, start_s, end_s FROM clips ORDER BY clip_id").to_pylist()
    for row in clips:
        assert corpus.media_path(row["clip_id"], "mp4").is_file()
        assert corpus.media_path(row["clip_id"], "face.npz").is_file()
    stems = {path.name.partition(".")[0] for path in (corpus.root / "media").rglob("*") if path.is_file()}
    assert stems == {row["clip_id"] for row in clips}, "a media file belongs to no clip"
    return (
        corpus.query("SELECT source_id FROM sources ORDER BY 1")["source_id"].to_pylist(),
        [(row["clip_id"], row["start_s"], row["end_s"]) for row in clips],
        [Path(uri).name for uri in corpus.query("SELECT uri FROM failures ORDER BY 1")["uri"].to_pylist()],
    )


@pytest.fixture(scope="module")
def undisturbed(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, IngestSummary]:
    root = tmp_path_factory.mktemp("plain") / "corpus"
    summary = ingest([str(videos)], root)
    return Corpus.open(root), summary


def test_every_input_ends_in_one_table_and_rubbish_stops_nobody(undisturbed: tuple[Corpus, IngestSummary]) -> None:
    corpus, summary = undisturbed
    sources, clips, failures = contents(corpus)
    assert (len(sources), failures) == (SOURCES, ["empty.mov", "text.mp4"])
    assert len(clips) >= SOURCES
    assert summary.failures == {"not-a-video": 2}
    assert [Path(copy).name for copy in summary.duplicates] == ["film0.mp4"]
    assert {row["error_type"] for row in corpus.read("failures").to_pylist()} == {"not-a-video"}
    assert set(corpus.query("SELECT DISTINCT has_audio FROM clips")["has_audio"].to_pylist()) == {0.0}


def test_a_second_run_has_nothing_to_do_and_starts_nothing(videos: Path, undisturbed: tuple[Corpus, IngestSummary]) -> None:
    corpus, _ = undisturbed
    before = corpus.versions()
    began = time.perf_counter()
    summary = ingest([str(videos)], corpus.root)
    assert time.perf_counter() - began < 5, "workers were started for nothing"
    assert (summary.sources, summary.skipped_done, summary.skipped_failed) == (0, SOURCES, 2)
    assert corpus.versions() == before


def test_a_driver_killed_in_the_middle_is_made_good_by_running_again(
    videos: Path, undisturbed: tuple[Corpus, IngestSummary], tmp_path: Path
) -> None:
    root = tmp_path / "corpus"
    command = [sys.executable, "-c", DRIVER, str(videos), str(root)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as driver:
        assert driver.stdout is not None
        for _ in range(3):
            assert driver.stdout.readline(), "the driver ended before it could be killed"
        os.kill(driver.pid, signal.SIGKILL)
    committed = len(Corpus.open(root).read("sources"))
    assert committed < SOURCES
    summary = ingest([str(videos)], root)
    assert summary.sources + summary.skipped_done == SOURCES
    assert summary.skipped_done == committed
    assert contents(Corpus.open(root)) == contents(undisturbed[0])
    assert not list((root / ".work").iterdir())


def test_no_space_is_one_clear_error_before_anything_starts(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match="only 0 MiB are free"):
        ingest([str(videos)], tmp_path / "corpus", IngestConfig())
