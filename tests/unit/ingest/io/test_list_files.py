"""List files as editors and systems save them: right, or a failure of one line alone."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uniavgen.ingest.io.list_files import parse_list
from uniavgen.ingest.io.sources import find_sources
from uniavgen.ingest.io.uris import Entry
from uniavgen.shards.errors import UserError
from uniavgen.shards.uris import local_path

LINES = "# comment\n\na.mp4\n b.mp4 \n日本.mp4\n"


def encodings() -> dict[str, bytes]:
    """One list in the encodings that editors write."""
    texts = {"unix": LINES, "dos": LINES.replace("\n", "\r\n"), "mac": LINES.replace("\n", "\r")}
    saved = {}
    for name, text in texts.items():
        saved[f"utf-8 {name}"] = text.encode()
        saved[f"utf-8 {name}, mark"] = b"\xef\xbb\xbf" + text.encode()
        for encoding, mark in (("utf-16-le", b"\xff\xfe"), ("utf-16-be", b"\xfe\xff")):
            saved[f"{encoding} {name}, mark"] = mark + text.encode(encoding)
            saved[f"{encoding} {name}"] = text.encode(encoding)
        saved[f"utf-32 {name}, mark"] = b"\xff\xfe\0\0" + text.encode("utf-32-le")
    return saved


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for name in ("a.mp4", "b.mp4", "日本.mp4"):
        (tmp_path / name).write_text("x")
    return tmp_path


def listed(folder: Path, data: bytes) -> list[Entry]:
    (folder / "list.txt").write_bytes(data)
    return find_sources([str(folder / "list.txt")]).entries


@pytest.mark.parametrize("encoding", encodings())
def test_list_in_any_encoding_names_the_same_videos(videos: Path, encoding: str) -> None:
    entries = listed(videos, encodings()[encoding])
    assert [Path(entry.uri).name for entry in entries] == ["a.mp4", "b.mp4", "日本.mp4"]
    assert all(entry.stamp for entry in entries)


def test_bad_line_fails_alone_with_its_number(videos: Path) -> None:
    data = b"a.mp4\n\xff\xfeb\0.\0m\0p\0004\0\n" + b"x" * 5000 + b"\nmiss\xe9.mp4\nwhat://x/y.mp4\nb.mp4\n"
    entries = listed(videos, data)
    assert [Path(entry.uri).name for entry in entries if entry.stamp] == ["a.mp4", "b.mp4"]
    bad = {entry.origin.split(" of ")[0]: entry for entry in entries if not entry.stamp}
    assert set(bad) == {"line 2", "line 3", "line 4", "line 5"}
    assert bad["line 2"].problem == "the line has a zero byte"
    assert bad["line 3"].problem == "the line is longer than 4096 bytes"
    assert bad["line 4"].uri.endswith("miss%E9.mp4")
    assert "what://" in bad["line 5"].problem
    for entry in entries:
        assert (entry.uri + entry.origin + entry.problem).encode("utf-8")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        (b"caf\xe9.mp4", b"caf\xe9.mp4"),  # as it is on disk
        ("café.mp4".encode(), b"caf\xe9.mp4"),  # a list in Latin-1
        (unicodedata.normalize("NFD", "café.mp4").encode(), "café.mp4".encode()),
        ("café.mp4".encode(), unicodedata.normalize("NFD", "café.mp4").encode()),
        (b"#1.mp4", b"#1.mp4"),
        (b" a .mp4 ", b" a .mp4 "),
        (b"http:x%20?.mp4", b"http:x%20?.mp4"),
    ],
)
def test_line_finds_the_file_it_means(tmp_path: Path, name: bytes, line: bytes) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    Path(path).write_text("x")
    (entry,) = listed(tmp_path, line + b"\n")
    assert local_path(entry.uri) == path
    assert entry.stamp


def test_video_given_as_a_list_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a text file") as caught:
        listed(tmp_path, b"\0\0\0\x20ftypisom\0\0\2\0isomiso2\n" + bytes(range(256)) * 9)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\n\r\n # x\n"])
def test_list_without_a_video_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="names no video"):
        listed(tmp_path, data)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line and line.strip()), max_size=8))
def test_no_line_is_lost_whatever_its_bytes(tmp_path: Path, lines: list[bytes]) -> None:
    data = b"\n".join([b"first.mp4", *lines, b"last.mp4"])
    parsed = parse_list(data)
    kept = [line.text.encode("utf-8", "surrogateescape").strip() for line in parsed]
    assert kept[0] == b"first.mp4"
    assert kept[-1] == b"last.mp4"
    visible = [line for line in lines if line.decode("utf-8", "surrogateescape").strip()]
    assert len(kept) == len(visible) + 2
