"""The choice of ffmpeg: PATH does not matter, another is checked by use, and its version changes the cut."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from uniavgen.ingest import ffmpeg_check
from uniavgen.ingest.config import PACKAGED, IngestConfig, LimitConfig
from uniavgen.ingest.engine.step import StepGraph
from uniavgen.ingest.ffmpeg_check import FEATURES, check_ffmpeg, examine_ffmpeg, is_too_old
from uniavgen.ingest.io import ffmpeg
from uniavgen.ingest.io.ffmpeg import (
    PINNED_VERSION,
    bounded_child,
    ffmpeg_path,
    ffmpeg_version,
    on_file_clock,
)
from uniavgen.ingest.measures.cut import CutStep
from uniavgen.ingest.measures.registry import step_graph
from uniavgen.ingest.records import Probe
from uniavgen.shards.errors import UserError

ROOT = Path(ffmpeg_check.__file__).parent
SYSTEM_FFMPEG = Path("/usr/bin/ffmpeg")
MISSING_LIBRARY = """
echo "ffmpeg: error while loading shared libraries: libavdevice.so.59: cannot open shared object file" >&2
exit 127"""


def program(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def real_but(path: Path, case: str) -> str:
    """The real ffmpeg, but for one case of `$*`."""
    return program(path, f'case "$*" in\n{case}\nesac\nexec "{ffmpeg_path()}" "$@"')


def named(choice: str) -> LimitConfig:
    return LimitConfig(ffmpeg=choice)


def test_program_on_path_is_used_by_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = program(tmp_path / "ffmpeg", f"touch {tmp_path}/used\n{MISSING_LIBRARY}")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", broken)
    ffmpeg_path.cache_clear()
    ffmpeg_version.cache_clear()
    report = check_ffmpeg(named(PACKAGED))
    assert report.version.split("-")[0] == PINNED_VERSION
    assert report.path != broken
    assert not (tmp_path / "used").exists()
    with pytest.raises(UserError, match="does not start: .*libavdevice.so.59") as caught:
        check_ffmpeg(named("path"))
    assert (caught.value.kind, caught.value.where) == ("broken-ffmpeg", broken)


def test_program_without_its_library_is_told_from_a_bad_video(tmp_path: Path) -> None:
    broken = program(tmp_path / "ffmpeg", MISSING_LIBRARY)
    for command in ([broken], [str(tmp_path / "absent")]):
        with bounded_child(command, 10, LimitConfig()) as child:
            child.read()
        with pytest.raises(UserError, match="ffmpeg does not start") as caught:
            child.check("a.mp4", "the audio track cannot be decoded", "decode-failed")
        assert caught.value.kind == "broken-ffmpeg"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (
            "*-version*) echo ffmpeg version 4.4.2-0ubuntu0.22.04.1; exit;;",
            "4.4.2.* is too old, 5.1 is needed",
        ),
        (
            f'*-encoders*) "{ffmpeg_path()}" -hide_banner -encoders | grep -v libx264; exit;;',
            "lacks encoder libx264",
        ),
        (
            f'*-filters*) "{ffmpeg_path()}" -hide_banner -filters | grep -v zscale; exit;;',
            "lacks filter zscale",
        ),
        (
            f'*-demuxers*) "{ffmpeg_path()}" -hide_banner -demuxers | grep -v matroska; exit;;',
            "lacks demuxer matroska, demuxer webm",
        ),
        ("*format_whitelist*) echo Option format_whitelist not found. >&2; exit 1;;", "format_whitelist not"),
        (
            "*vframes*) set -f; set -- $(echo $* | sed 's/vframes [0-9]*/vframes 3/');;",
            "the cut has 3 frames",
        ),
        ("*audio.part*) set -f; set -- $(echo $* | sed 's/-t [0-9.]*/-t 0.5/');;", "0.50 s of audio"),
        ("*audio.part*) exit;;", "audio.part.*self-test"),
        ('*"-i "*.ts*) kill -SEGV $$;;', "a transport stream cannot be read: exit code -11"),
        ("*-version*) echo hello; exit;;", "does not start: hello"),
    ],
)
def test_program_that_would_work_wrongly_is_refused_in_one_line(
    case: str, message: str, tmp_path: Path
) -> None:
    wrapper = real_but(tmp_path / "ffmpeg", case)
    with pytest.raises(UserError, match=message) as caught:
        check_ffmpeg(named(wrapper))
    assert (caught.value.kind, caught.value.where) == ("broken-ffmpeg", wrapper)
    assert "packaged" in caught.value.hint


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 64])
def test_file_that_is_no_program_is_refused(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "ffmpeg"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o755 if content else 0o644)
    with pytest.raises(UserError) as caught:
        check_ffmpeg(named(str(file)))
    assert caught.value.kind == ("broken-ffmpeg" if content else "no-ffmpeg")


def test_features_are_those_that_the_package_uses() -> None:
    source = "".join(path.read_text() for path in ROOT.rglob("*.py"))
    used = set(re.findall(r"\.filter(?:_multi_output)?\(\s*\"(\w+)\"", source))
    used |= set(re.findall(r"_branches\(.*, \"(\w+)\"", source))
    assert set(FEATURES["filters"].split()) == used
    encoders = set(re.findall(r"\"[av]codec\": \"(\w+)\"", source))
    assert encoders <= set(FEATURES["encoders"].split())


def test_old_versions_are_told_apart() -> None:
    old = {
        "4.4.2": True,
        "5.0.3": True,
        "5.1.9-0+deb12u1": False,
        "7.0.2": False,
        "10.0": False,
        "N-1234-gabc": False,
    }
    assert {version: is_too_old(version) for version in old} == old


def test_another_version_changes_the_key_of_the_cut_alone(tmp_path: Path) -> None:
    wrapper = real_but(tmp_path / "ffmpeg", "*-version*) echo ffmpeg version 9.1; exit;;")
    same = program(tmp_path / "same", f'exec "{ffmpeg_path()}" "$@"')
    usual = step_graph(IngestConfig(limits=named(PACKAGED)))
    other = step_graph(IngestConfig(limits=named(wrapper)))
    changed = {name for name in usual.keys if usual.keys[name] != other.keys[name]}
    assert changed == {"cut"}
    assert other.programs["cut"] == "ffmpeg 9.1"
    assert step_graph(IngestConfig(limits=named(same))).keys == usual.keys


def test_another_version_keeps_the_time_stamps_of_the_file(tmp_path: Path) -> None:
    """5.1 to 7.0 find another start where an audio codec has a delay."""
    wrapper = real_but(tmp_path / "ffmpeg", "*-version*) echo ffmpeg version 7.1; exit;;")
    probe = Probe(9.0, 96, 64, 25.0, "h264", "mp3", has_audio=True, clock_zero_s=0.25)
    assert on_file_clock(probe, named(PACKAGED)) == probe
    assert on_file_clock(probe, named(wrapper)).start_s == 0.25
    late = replace(probe, start_s=1.5)
    assert on_file_clock(late, named(wrapper)) == late


def test_worker_with_another_version_does_not_cut(tmp_path: Path) -> None:
    graph = StepGraph((CutStep,), IngestConfig(limits=named(PACKAGED)))
    CutStep(graph, tmp_path, tmp_path).load()
    graph.programs["cut"] = "ffmpeg 9.1"
    with pytest.raises(UserError, match=f"ffmpeg {PINNED_VERSION} is here, .* with ffmpeg 9.1") as caught:
        CutStep(graph, tmp_path, tmp_path).load()
    assert caught.value.kind == "broken-ffmpeg"


def test_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ffmpeg, "find_spec", lambda name: None)
    ffmpeg_path.cache_clear()
    with pytest.raises(UserError, match="ffmpeg is missing; pip install .*imageio-ffmpeg"):
        ffmpeg_path()
    ffmpeg_path.cache_clear()


@pytest.mark.skipif(not SYSTEM_FFMPEG.is_file(), reason="this machine has no /usr/bin/ffmpeg")
def test_ffmpeg_of_the_system_passes_or_says_why_not() -> None:
    report = examine_ffmpeg(named(str(SYSTEM_FFMPEG)))
    said = subprocess.run([SYSTEM_FFMPEG, "-version"], capture_output=True, text=True, check=True).stdout
    assert report.version in said
    assert not report.problem or is_too_old(report.version) or report.lacks
    assert replace(report, version="4.0").problem.startswith("version 4.0 is too old")
