"""Ingest under faults: drivers and workers killed, hanging steps, no memory, no disk, vanishing sources.

Nothing is lost or doubled, and stored results are reused.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from made_videos import speaking_face

from uniavgen.ingest import pipeline
from uniavgen.ingest.config import IngestConfig, LimitConfig
from uniavgen.ingest.engine.progress import IngestSummary, Progress
from uniavgen.ingest.ffmpeg_check import check_ffmpeg
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.measures.registry import STEPS
from uniavgen.ingest.pipeline import ingest as run_ingest
from uniavgen.orchestration.output.ingest_display import show_summary
from uniavgen.shards.cluster import ray_running
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

pytestmark = pytest.mark.slow

SPOKEN = 4
KILLS = 10
DRIVER = """
import sys
from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.pipeline import ingest
if __name__ == "__main__":
    ingest([sys.argv[1]], sys.argv[2], IngestConfig(commit_seconds=0))
"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four short videos of a speaking face, a silent one, a duplicate, and a text and an empty file."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(SPOKEN):
        speaking_face(folder / f"spoken{index}.mp4", start_s=7 + 3 * index, seconds=2.5)
    silent = [ffmpeg_path(), "-loglevel", "error", "-f", "lavfi", "-i", "testsrc2=s=128x96:r=25:d=3"]
    subprocess.run([*silent, "-pix_fmt", "yuv420p", str(folder / "silent.mp4")], check=True, timeout=60)
    shutil.copy(folder / "spoken0.mp4", folder / "spoken0 again.mp4")
    (folder / "text.mp4").write_text("no video")
    (folder / "empty.mov").touch()
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_ray_for_all() -> Iterator[None]:
    with ray_running():
        yield


@pytest.fixture(scope="module")
def undisturbed(
    videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Corpus, IngestSummary, list[Progress]]:
    root = tmp_path_factory.mktemp("plain") / "corpus"
    reports: list[Progress] = []
    summary = run_ingest([str(videos)], root, on_progress=reports.append)
    return Corpus.open(root), summary, reports


def contents(corpus: Corpus) -> tuple[list[str], list[tuple[str, float, float]], list[tuple[str, str]]]:
    """Sources, clips and failures of a corpus. Also checks the files of each clip."""
    clips = corpus.query("SELECT clip_id, start_s, end_s FROM clips ORDER BY clip_id").to_pylist()
    for row in clips:
        assert corpus.media_path(row["clip_id"], "mp4").is_file()
        assert corpus.media_path(row["clip_id"], "face.npz").is_file()
    files = [path for path in (corpus.root / "media").rglob("*") if path.is_file()]
    assert {path.name.partition(".")[0] for path in files} == {row["clip_id"] for row in clips}, (
        "a media file without a clip"
    )
    failures = corpus.query("SELECT uri, error_type FROM failures ORDER BY uri").to_pylist()
    uris = corpus.query("SELECT uri FROM sources")["uri"].to_pylist()
    assert not set(uris) & {row["uri"] for row in failures}, "an input in two tables"
    return (
        corpus.query("SELECT source_id FROM sources ORDER BY 1")["source_id"].to_pylist(),
        [(row["clip_id"], row["start_s"], row["end_s"]) for row in clips],
        [(Path(row["uri"]).name, row["error_type"]) for row in failures],
    )


def assert_equal_contents(corpus: Corpus, other: Corpus) -> None:
    """Equal but for which of two duplicates came first, which depends on timing."""
    one, two = contents(corpus), contents(other)
    assert one[:2] == two[:2]
    assert sorted(kind for _, kind in one[2]) == sorted(kind for _, kind in two[2])


def stored(root: Path, step: str) -> int:
    return len(list((root / "measured").glob(f"??/*/{step}.*.npz")))


@contextmanager
def disturbing(root: Path, disturb: Callable[[dict], None]) -> Iterator[None]:
    """Call `disturb` for every running step with {"step", "uri", "process"}."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            for marker in (root / ".work").glob("*/attempts/*.json"):
                with suppress(OSError, ValueError):
                    disturb(json.loads(marker.read_text()))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def test_every_input_is_in_one_table_and_bad_ones_stop_nothing(
    undisturbed: tuple[Corpus, IngestSummary, list[Progress]],
) -> None:
    corpus, summary, _ = undisturbed
    sources, clips, failures = contents(corpus)
    assert len(sources) == SPOKEN + 1
    assert len(clips) >= SPOKEN
    assert sorted(kind for _, kind in failures) == ["duplicate", "empty", "not-a-video"]
    assert summary.failures == {"empty": 1, "not-a-video": 1}
    assert {Path(uri).name for pair in summary.duplicates.items() for uri in pair} == {
        "spoken0.mp4",
        "spoken0 again.mp4",
    }
    stored_steps = [step.name for step in STEPS if step.stored]
    assert {name: summary.steps[name].done for name in stored_steps} == dict.fromkeys(
        stored_steps, SPOKEN + 1
    )


def test_progress_is_reported_before_the_first_source_ends(
    undisturbed: tuple[Corpus, IngestSummary, list[Progress]],
) -> None:
    _, summary, reports = undisturbed
    waiting = [each for each in reports if each.done == 0]
    assert len(waiting) > summary.start_seconds / 3
    assert any(step.running for each in waiting for step in each.steps)
    last = reports[-1]
    assert (last.done, last.total, last.clips, last.failures) == (
        SPOKEN + 4,
        SPOKEN + 4,
        summary.clips,
        summary.failures,
    )
    assert all(step.queued == 0 for step in last.steps)


def test_second_run_has_nothing_to_do(
    videos: Path, undisturbed: tuple[Corpus, IngestSummary, list[Progress]]
) -> None:
    corpus, _, _ = undisturbed
    before = corpus.versions()
    summary = run_ingest([str(videos)], corpus.root)
    assert summary.steps == {}, "workers were started without work"
    assert (summary.sources, summary.skipped_done, summary.skipped_failed) == (0, SPOKEN + 1, 2)
    assert [Path(first).suffix for first in summary.duplicates.values()] == [".mp4"]
    assert corpus.versions() == before


def test_run_after_ten_killed_drivers_gives_the_same_corpus(
    videos: Path, undisturbed: tuple[Corpus, IngestSummary, list[Progress]], tmp_path: Path
) -> None:
    root = tmp_path / "corpus"
    chance = random.Random(3)
    reached = []
    for _ in range(KILLS):
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(videos), str(root)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        with suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=chance.uniform(2, 11))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        reached.append(stored(root, "measure"))
    time.sleep(2)  # workers outlive their driver for a moment and may still write
    before = {
        name: stored(root, name) for name in ("diarize", "transcribe", "faces", "shots", "listen", "measure")
    }
    summary = run_ingest([str(videos)], root)
    assert_equal_contents(Corpus.open(root), undisturbed[0])
    assert {name: summary.steps[name].done if summary.steps else 0 for name in before} == {
        name: SPOKEN + 1 - count for name, count in before.items()
    }, f"stored work was done again; {reached}"
    assert not list((root / ".work").iterdir())
    assert not list((root / "measured" / ".cutting").iterdir())


def test_killed_workers_and_vanishing_source_affect_nothing_else(
    videos: Path, undisturbed: tuple[Corpus, IngestSummary, list[Progress]], tmp_path: Path
) -> None:
    copies, root = tmp_path / "videos", tmp_path / "corpus"
    shutil.copytree(videos, copies)
    vanishing = copies / "spoken3.mp4"
    to_kill = {"probe", "transcribe", "decode", "cut"}
    killed: dict[str, str] = {}

    def disturb(attempt: dict) -> None:
        if Path(attempt["uri"]) == vanishing:
            if attempt["step"] == "diarize":
                vanishing.unlink(missing_ok=True)
        elif attempt["step"] in to_kill - killed.keys():
            os.kill(attempt["process"], signal.SIGKILL)
            killed[attempt["step"]] = attempt["uri"]

    with disturbing(root, disturb):
        summary = run_ingest([str(copies)], root)
    assert killed.keys() == to_kill
    assert summary.failures == {"empty": 1, "not-a-video": 1, "vanished": 1}
    corpus = Corpus.open(root)
    sources, clips, failures = contents(corpus)
    assert ("spoken3.mp4", "vanished") in failures
    shutil.copy2(videos / vanishing.name, vanishing)
    again = run_ingest([str(copies)], root, retry=True, step=failed_step(corpus, vanishing))
    assert (again.sources, again.steps["diarize"].done, again.steps["diarize"].reused) == (1, 0, 1)
    assert_equal_contents(corpus, undisturbed[0])
    assert len(contents(corpus)[0]) == len(sources) + 1
    assert len(contents(corpus)[1]) > len(clips)


def failed_step(corpus: Corpus, path: Path) -> str:
    rows = corpus.read("failures", ["uri", "stage"]).to_pylist()
    return next(row["stage"] for row in rows if row["uri"] == str(path))


def test_hanging_step_fails_its_source_only(videos: Path, tmp_path: Path) -> None:
    stopped: set[int] = set()
    # without speech: replacement workers then load no speech models
    hanging = tmp_path / "hanging.mp4"
    hanging.write_bytes((videos / "silent.mp4").read_bytes() + bytes(16))

    def disturb(attempt: dict) -> None:
        if attempt["step"] == "decode" and attempt["uri"] == str(hanging):
            for child in Path(f"/proc/{attempt['process']}/task/").glob("*/children"):
                for each in child.read_text().split():
                    os.kill(int(each), signal.SIGSTOP)
                    stopped.add(int(each))

    limits = {"step_seconds": 12, "step_factor": 1}
    with disturbing(tmp_path / "corpus", disturb):
        summary = run_ingest(
            [str(hanging), str(videos / "silent.mp4")],
            tmp_path / "corpus",
            IngestConfig.model_validate({"limits": limits}),
        )
    assert (summary.sources, summary.failures) == (1, {"timeout": 1})
    assert "took longer than" in next(iter(summary.failed.values()))
    assert stopped
    assert not any(Path(f"/proc/{each}").exists() for each in stopped), "the decoder outlived its worker"


def test_source_over_memory_limit_fails_and_can_be_retried(videos: Path, tmp_path: Path) -> None:
    source, root = str(videos / "silent.mp4"), tmp_path / "corpus"
    tight = IngestConfig.model_validate({"limits": {"step_memory_gb": 0.05}})
    summary = run_ingest([source], root, tight)
    assert summary.failures == {"out-of-memory": 1}
    assert "raise limits.step_memory_gb" in summary.failed[source]
    assert run_ingest([source], root).skipped_failed == 1
    assert run_ingest([source], root, retry=True).sources == 1
    assert len(Corpus.open(root).read("failures")) == 0


def test_broken_ffmpeg_stops_the_run_and_charges_no_source(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper, broken = tmp_path / "ffmpeg", tmp_path / "broken"
    lost = "echo ffmpeg: error while loading shared libraries: libx264.so >&2; exit 127"
    wrapper.write_text(f'#!/bin/sh\n[ -e {broken} ] && {{ {lost}; }}\nexec "{ffmpeg_path()}" "$@"\n')
    wrapper.chmod(0o755)
    root, config = tmp_path / "corpus", IngestConfig(limits=LimitConfig(ffmpeg=str(wrapper)))

    def break_after_check(limits: LimitConfig) -> None:
        check_ffmpeg(limits)
        broken.touch()

    monkeypatch.setattr(pipeline, "check_ffmpeg", break_after_check)
    good = [str(videos / "spoken0.mp4"), str(videos / "silent.mp4")]
    with pytest.raises(UserError, match="this machine cannot measure: .*libx264.so.*no source was charged"):
        run_ingest(good, root, config)
    monkeypatch.undo()
    with pytest.raises(UserError, match="ffmpeg"):
        run_ingest(good, root, config)
    assert len(Corpus.open(root).read("failures")) == 0
    broken.unlink()
    assert run_ingest(good, root, config).sources == 2


CUT_WRONGLY = """#!{python} -SE
import os, subprocess, sys
from pathlib import Path

# names of clips have 20 signs, those of the self-test fewer
folder, program, words = Path({folder!r}), {program!r}, sys.argv[1:]
audios = [word.removeprefix("file:") for word in words if word.endswith(".flac")]
clips = dict((Path(audio).stem, audio) for audio in audios if len(Path(audio).stem) == 20)
names = ("differs", "fails")
chosen = dict((name, (folder / name).read_text()) for name in names if (folder / name).exists())
if (folder / "wrong").exists():
    if len(clips) > 1 and not clips.keys() & set(chosen.values()):
        second, own = list(clips)[1], folder / str(os.getpid())
        own.write_text(second)
        for name in names:
            try:
                os.link(own, folder / name)
            except FileExistsError:
                continue
            chosen[name] = second
            break
    if chosen.get("fails") in clips:
        sys.exit("no luck with this clip")
    if chosen.get("differs") in clips:
        audio = clips[chosen["differs"]]
        subprocess.run([program, *words], check=True)
        backwards = ["-v", "error", "-i", audio, "-af", "areverse", audio + ".new.flac"]
        subprocess.run([program, *backwards], check=True)
        sys.exit(os.replace(audio + ".new.flac", audio))
os.execv(program, [program, *words])
"""
"""An ffmpeg that fails at the second clip of one source, and writes other audio for that of another."""


def clip_failures(corpus: Corpus) -> dict[str, tuple[str, int]]:
    """Failed clips of ingest: kind and attempts by clip_id. Checks that their sources kept other clips."""
    rows = corpus.query("SELECT * FROM failures WHERE uri LIKE 'clip:%'").to_pylist()
    kept = set(corpus.query("SELECT source_id FROM clips")["source_id"].to_pylist())
    assert {row["source_id"] for row in rows} <= kept
    assert {row["stage"] for row in rows} <= {"cut"}
    return {row["uri"].removeprefix("clip:"): (row["error_type"], row["attempts"]) for row in rows}


def test_failed_clips_cost_themselves_alone_and_are_retried(
    videos: Path,
    undisturbed: tuple[Corpus, IngestSummary, list[Progress]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, wrapper, wrong = tmp_path / "corpus", tmp_path / "ffmpeg", tmp_path / "wrong"
    shutil.copytree(undisturbed[0].root, root)  # with stored measurements: only short clips are new
    wrapper.write_text(CUT_WRONGLY.format(python=sys.executable, folder=str(tmp_path), program=ffmpeg_path()))
    wrapper.chmod(0o755)
    wrong.touch()
    changes = {"limits": {"ffmpeg": str(wrapper)}, "clips": {"min_s": 0.5, "max_s": 1.0}}
    config = IngestConfig.model_validate(changes)
    named = [str(videos / f"spoken{index}.mp4") for index in range(1, SPOKEN)]  # of 0 there is a copy
    summary = run_ingest(named, root, config)
    differs, fails = ((tmp_path / name).read_text() for name in ("differs", "fails"))
    corpus = Corpus.open(root)
    assert clip_failures(corpus) == {differs: ("clip-differs", 1), fails: ("cut-failed", 1)}
    found = (summary.sources, summary.failures, set(summary.failed_clips))
    assert found == (len(named), {}, {differs, fails})
    kept = {row[0] for row in contents(corpus)[1]}
    assert not kept & {differs, fails}
    owners = corpus.query("SELECT uri FROM clips JOIN sources USING (source_id)")["uri"].to_pylist()
    assert len(kept) == summary.clips + sum(uri not in named for uri in owners)
    show_summary(summary, named, str(root))
    said = " ".join(capsys.readouterr().err.split())
    assert "2 clips failed" in said
    assert "its sound is not the analysed one: lag" in said
    assert "no luck with this clip" in said
    assert "--retry" in said

    again = run_ingest(named, root, config)
    assert (again.sources, again.skipped_done, again.skipped_failed_clips) == (0, len(named), 2)
    still = run_ingest(named, root, config, retry=True, step="cut")
    assert (still.sources, set(still.failed_clips)) == (2, {differs, fails})
    assert clip_failures(corpus) == {differs: ("clip-differs", 2), fails: ("cut-failed", 2)}
    wrong.unlink()
    healed = run_ingest(named, root, config, retry=True)
    assert (healed.sources, healed.failed_clips, clip_failures(corpus)) == (2, {}, {})
    assert {row[0] for row in contents(corpus)[1]} == kept | {differs, fails}


def test_full_disk_is_one_error_and_next_run_completes(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        monkeypatch.setattr(pipeline, "MIN_FREE_BYTES", 0)
        root = small / "corpus"
        Corpus.create(root)
        ballast = small / "ballast"
        with suppress(OSError), ballast.open("wb") as file:
            file.write(b"x" * (30 * 2**20))
        os.truncate(ballast, ballast.stat().st_size - 2**16)
        with pytest.raises(UserError, match="the disk is full .*; free some space and run again"):
            run_ingest([str(videos / "silent.mp4")], root)
        assert len(Corpus.open(root).read("sources")) == 0
        ballast.unlink()
        assert run_ingest([str(videos / "silent.mp4")], root).sources == 1
        assert len(contents(Corpus.open(root))[0]) == 1
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_too_little_space_is_an_error_before_start(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "MIN_FREE_BYTES", 2**60)
    with pytest.raises(UserError, match="MiB are free"):
        run_ingest([str(videos)], tmp_path / "corpus")
