"""Expanding arguments to videos: files, folders, patterns, lists, odd names, links."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from uniavgen.ingest.config import LimitConfig, SourceConfig
from uniavgen.ingest.io.download_cache import DownloadCache
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.io.local_files import content_id
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.io.sources import find_sources
from uniavgen.shards.errors import UserError
from uniavgen.shards.uris import local_path, uri_of


def touch(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def names(uris: list[str]) -> list[str]:
    return [Path(uri).name for uri in uris]


def test_folder_lists_videos_at_any_depth_and_reports_other_files(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MOV", "deep/er/c.mkv", "SHA256SUMS", "notes.txt"):
        touch(tmp_path / name)
    sources = find_sources([str(tmp_path)])
    assert names(sources.videos) == ["a.MOV", "b.mp4", "c.mkv"]
    assert {Path(uri).name: why for uri, why in sources.passed_over.items()} == {
        "SHA256SUMS": "not a video by its name",
        "notes.txt": "not a video by its name",
    }


def test_stamp_changes_with_file_time(tmp_path: Path) -> None:
    video = touch(tmp_path / "v.mp4", "four")
    before = find_sources([str(video)]).entries[0]
    assert (before.uri, before.bytes) == (str(video), 4)
    assert find_sources([str(tmp_path)]).entries == [before]
    os.utime(video, ns=(0, 1_000_000_001))
    assert find_sources([str(video)]).entries[0].stamp != before.stamp


def test_named_file_is_taken_with_any_extension(tmp_path: Path) -> None:
    odd = touch(tmp_path / "speech.bin")
    assert find_sources([str(odd)]).videos == [str(odd)]


def test_video_named_in_four_ways_is_taken_once(tmp_path: Path) -> None:
    video = touch(tmp_path / "v.mp4")
    listing = touch(tmp_path / "list.txt", f"# comment\nv.mp4\r\n\nfile://{tmp_path}/v.mp4\n")
    sources = find_sources(
        [str(video), str(tmp_path / "*.mp4"), str(listing), str(tmp_path), f"file://{video}"]
    )
    assert sources.videos == [str(video)]


def test_missing_file_in_a_list_does_not_stop_others(tmp_path: Path) -> None:
    touch(tmp_path / "here.mp4")
    listing = touch(tmp_path / "list.txt", "gone.mp4\nhere.mp4\n")
    sources = find_sources([str(listing)])
    assert names(sources.videos) == ["gone.mp4", "here.mp4"]
    assert (sources.entries[0].stamp, sources.entries[0].bytes) == ("", None)
    with pytest.raises(UserError, match="cannot be read"):
        content_id(str(tmp_path / "gone.mp4"))


@pytest.mark.parametrize("argument", ["nowhere", "*.nothing", "empty", "no_videos", "blank.txt"])
def test_argument_without_videos_is_a_one_line_error(tmp_path: Path, argument: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "no_videos" / "readme.md")
    touch(tmp_path / "blank.txt", "\n# nothing\n")
    with pytest.raises(UserError) as caught:
        find_sources([str(tmp_path / argument)])
    assert caught.value.kind == "no-sources"
    assert "\n" not in str(caught.value)


def test_content_id_depends_on_content_not_name(tmp_path: Path) -> None:
    one, same, other = touch(tmp_path / "1"), touch(tmp_path / "2"), touch(tmp_path / "3", "y")
    assert content_id(str(one)) == content_id(str(same)) != content_id(str(other))


@pytest.fixture(scope="module")
def small_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    video = tmp_path_factory.mktemp("video") / "a.mp4"
    inputs = [
        "-f",
        "lavfi",
        "-i",
        "testsrc2=s=64x48:r=10:d=1",
        "-f",
        "lavfi",
        "-i",
        "sine=d=1",
        "-pix_fmt",
        "yuv420p",
    ]
    subprocess.run([ffmpeg_path(), "-loglevel", "error", *inputs, str(video)], check=True, timeout=60)
    return video


ODD_NAMES = [
    b"-i.mp4",
    b"a b'\"c.mp4",
    b"line\nbreak.mp4",
    "päter:1.mp4".encode(),
    b"%03d.mp4",
    b"caf\xe9.mp4",
    b"[x]*?.mp4",
]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_listed_fetched_and_probed(tmp_path: Path, name: bytes, small_video: Path) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    os.link(small_video, path)
    for argument in (str(tmp_path), path, os.path.join(os.path.relpath(tmp_path), os.fsdecode(name))):
        entry = find_sources([argument]).entries[0]
        entry.uri.encode("utf-8")  # the tables need UTF-8
        local = DownloadCache(SourceConfig(), tmp_path).fetch(entry)
        local.encode("utf-8")
        assert os.path.samefile(local, path)
        assert probe_video(local, LimitConfig()).has_audio
        # a URI from a table can be an argument of the next run
        assert find_sources([entry.uri]).entries == [entry]


def test_uri_of_non_utf8_name_round_trips() -> None:
    path = os.fsdecode(b"/videos/caf\xe9 100%\n.mp4")
    assert uri_of(path) == "file:///videos/caf%E9%20100%25%0A.mp4"
    assert local_path(uri_of(path)) == path
    assert local_path("/videos/100%25.mp4") == "/videos/100%25.mp4"
    assert local_path("s3://bucket/100%25.mp4") is None


def test_unlistable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("open/a.mp4", "shut/b.mp4"):
        touch(tmp_path / name)
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    sources = find_sources([str(tmp_path)])
    assert names(sources.videos) == ["a.mp4"]
    assert sources.passed_over == {
        str(tmp_path / "shut"): "a folder that cannot be listed: Permission denied"
    }
    with pytest.raises(UserError, match="cannot be listed"):
        find_sources([str(tmp_path / "shut")])


def test_links_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path / "outside" / "secret.mp4")
    inside = touch(tmp_path / "folder" / "a.mp4").parent
    (inside / "out.mp4").symlink_to(tmp_path / "outside" / "secret.mp4")
    (inside / "folder.mp4").symlink_to(tmp_path / "outside")
    (inside / "dangling.mp4").symlink_to("nothing.mp4")
    (inside / "in.mp4").symlink_to("a.mp4")
    for argument in (str(inside), str(inside / "*"), str(inside / "**" / "*.mp4")):
        sources = find_sources([argument])
        assert names(sources.videos) == ["a.mp4", "in.mp4"], argument
        passed_over = {Path(uri).name: why for uri, why in sources.passed_over.items()}
        passed_over.pop("secret.mp4", None)  # a pattern with ** may look through a linked folder
        assert passed_over == {
            "dangling.mp4": "a broken link",
            "folder.mp4": "a link that leads out of the folder",
            "out.mp4": "a link that leads out of the folder",
        }
    # a link that the user names is followed
    assert names(find_sources([str(inside / "out.mp4")]).videos) == ["out.mp4"]


def test_pipes_sockets_devices_are_passed_over_in_folders_and_fail_when_named(tmp_path: Path) -> None:
    touch(tmp_path / "f" / "a.mp4")
    touch(tmp_path / "f" / "folder.mp4" / "b.mp4")
    os.mkfifo(tmp_path / "f" / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(tmp_path / "f" / "socket.mp4"))
        sources = find_sources([str(tmp_path / "f")])
        assert names(sources.videos) == ["a.mp4", "b.mp4"]
        assert {Path(uri).name: why for uri, why in sources.passed_over.items()} == {
            "pipe.mp4": "a pipe",
            "socket.mp4": "a socket",
        }
        touch(tmp_path / "empty.mp4", "")
        listing = touch(tmp_path / "l.txt", "f/pipe.mp4\nf/socket.mp4\nf/folder.mp4\n/dev/zero\nempty.mp4\n")
        kinds = {}
        for entry in find_sources([str(listing)]).entries:
            with pytest.raises(UserError) as caught:
                DownloadCache(SourceConfig(), tmp_path).fetch(entry)
            kinds[Path(entry.uri).name] = caught.value.what
            with pytest.raises(UserError):
                content_id(entry.uri)
    assert kinds == {
        "pipe.mp4": "it is a pipe, not a file",
        "socket.mp4": "it is a socket, not a file",
        "folder.mp4": "it is a folder, not a file",
        "zero": "it is a device, not a file",
        "empty.mp4": "the file is empty (zero bytes)",
    }


REFUSED = {
    "http://127.0.0.1:9/a.mp4": "http-off",
    "nonsense://x/a.mp4": "bad-url",
    "zip://a.mp4::http://127.0.0.1:9/a.zip": "bad-url",
}


@pytest.mark.parametrize(("argument", "kind"), REFUSED.items())
def test_refused_urls_raise_before_any_read(argument: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find_sources([argument])
    assert caught.value.kind == kind
    touch(tmp_path / "a.mp4")
    listing = str(touch(tmp_path / "list.txt", f"{argument}\na.mp4\n"))
    if kind == "http-off":
        with pytest.raises(UserError, match="allow_http"):
            find_sources([listing])
    else:  # fails alone
        good, bad = find_sources([listing]).entries
        assert (good.problem, bad.uri, bad.origin.split(" of ")[0]) == ("", argument, "line 1")
        assert bad.problem
