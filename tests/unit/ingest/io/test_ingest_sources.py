"""What the user names becomes a list of videos: every one once, nothing dropped without a word."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from uniavgen.ingest.config import LimitConfig, SourceConfig
from uniavgen.ingest.io.download_cache import DownloadCache
from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.ingest.io.media import probe
from uniavgen.ingest.io.sources import content_id, find_sources
from uniavgen.ingest.io.uris import local_path, uri_of
from uniavgen.shards.errors import UserError


def touch(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def names(uris: list[str]) -> list[str]:
    return [Path(uri).name for uri in uris]


def test_a_folder_gives_its_videos_at_any_depth_in_order_and_names_the_rest(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MOV", "deep/er/c.mkv", "SHA256SUMS", "notes.txt"):
        touch(tmp_path / name)
    found = find_sources([str(tmp_path)])
    assert names(found.videos) == ["a.MOV", "b.mp4", "c.mkv"]
    assert {Path(uri).name: why for uri, why in found.passed_over.items()} == {
        "SHA256SUMS": "no video by its name",
        "notes.txt": "no video by its name",
    }


def test_an_entry_carries_what_shows_that_a_file_has_changed(tmp_path: Path) -> None:
    video = touch(tmp_path / "v.mp4", "four")
    before = find_sources([str(video)]).entries[0]
    assert (before.uri, before.bytes) == (str(video), 4)
    assert find_sources([str(tmp_path)]).entries == [before]
    os.utime(video, ns=(0, 1_000_000_001))
    assert find_sources([str(video)]).entries[0].stamp != before.stamp


def test_a_file_named_outright_is_taken_whatever_its_name(tmp_path: Path) -> None:
    odd = touch(tmp_path / "speech.bin")
    assert find_sources([str(odd)]).videos == [str(odd)]


def test_a_video_named_in_four_ways_is_taken_once(tmp_path: Path) -> None:
    video = touch(tmp_path / "v.mp4")
    listing = touch(tmp_path / "list.txt", f"# mine\nv.mp4\r\n\nfile://{tmp_path}/v.mp4\n")
    found = find_sources(
        [str(video), str(tmp_path / "*.mp4"), str(listing), str(tmp_path), f"file://{video}"]
    )
    assert found.videos == [str(video)]


def test_a_listed_file_that_is_missing_stops_nobody(tmp_path: Path) -> None:
    touch(tmp_path / "here.mp4")
    listing = touch(tmp_path / "list.txt", "gone.mp4\nhere.mp4\n")
    found = find_sources([str(listing)])
    assert names(found.videos) == ["gone.mp4", "here.mp4"]
    assert (found.entries[0].stamp, found.entries[0].bytes) == ("", None)
    with pytest.raises(UserError, match="cannot be read"):
        content_id(str(tmp_path / "gone.mp4"))


@pytest.mark.parametrize("argument", ["nowhere", "*.nothing", "empty", "no_videos", "blank.txt"])
def test_a_source_without_videos_is_one_clear_error(tmp_path: Path, argument: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "no_videos" / "readme.md")
    touch(tmp_path / "blank.txt", "\n# nothing\n")
    with pytest.raises(UserError) as caught:
        find_sources([str(tmp_path / argument)])
    assert caught.value.kind == "no-sources"
    assert "\n" not in str(caught.value)


def test_content_not_name_is_a_source_s_identity(tmp_path: Path) -> None:
    one, same, other = touch(tmp_path / "1"), touch(tmp_path / "2"), touch(tmp_path / "3", "y")
    assert content_id(str(one)) == content_id(str(same)) != content_id(str(other))


@pytest.fixture(scope="module")
def small_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    film = tmp_path_factory.mktemp("film") / "a.mp4"
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
    subprocess.run([ffmpeg_path(), "-loglevel", "error", *inputs, str(film)], check=True, timeout=60)
    return film


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
def test_odd_names_are_only_names(tmp_path: Path, name: bytes, small_film: Path) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
    os.link(small_film, path)
    for argument in (str(tmp_path), path, os.path.join(os.path.relpath(tmp_path), os.fsdecode(name))):
        entry = find_sources([argument]).entries[0]
        entry.uri.encode("utf-8")  # as the tables need it
        local = DownloadCache(SourceConfig(), tmp_path).fetch(entry)
        local.encode("utf-8")
        assert os.path.samefile(local, path)
        assert probe(local, LimitConfig()).has_audio
        # what a table shows can be given to the next run
        assert find_sources([entry.uri]).entries == [entry]


def test_a_name_that_is_no_utf8_comes_back_as_it_was() -> None:
    path = os.fsdecode(b"/videos/caf\xe9 100%\n.mp4")
    assert uri_of(path) == "file:///videos/caf%E9%20100%25%0A.mp4"
    assert local_path(uri_of(path)) == path
    assert local_path("/videos/100%25.mp4") == "/videos/100%25.mp4"
    assert local_path("s3://bucket/100%25.mp4") is None


def test_a_folder_that_cannot_be_listed_is_named_and_not_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("open/a.mp4", "shut/b.mp4"):
        touch(tmp_path / name)
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = find_sources([str(tmp_path)])
    assert names(found.videos) == ["a.mp4"]
    assert found.passed_over == {str(tmp_path / "shut"): "a folder that cannot be listed: Permission denied"}
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
        found = find_sources([argument])
        assert names(found.videos) == ["a.mp4", "in.mp4"], argument
        passed_over = {Path(uri).name: why for uri, why in found.passed_over.items()}
        passed_over.pop("secret.mp4", None)  # a pattern with ** may look through a linked folder
        assert passed_over == {
            "dangling.mp4": "a link to nothing",
            "folder.mp4": "a link that leads out of the folder",
            "out.mp4": "a link that leads out of the folder",
        }
    # a link that the user names is what the user means
    assert names(find_sources([str(inside / "out.mp4")]).videos) == ["out.mp4"]


def test_what_is_no_file_is_passed_over_in_a_folder_and_fails_when_named(tmp_path: Path) -> None:
    touch(tmp_path / "f" / "a.mp4")
    touch(tmp_path / "f" / "folder.mp4" / "b.mp4")
    os.mkfifo(tmp_path / "f" / "pipe.mp4")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(tmp_path / "f" / "socket.mp4"))
        found = find_sources([str(tmp_path / "f")])
        assert names(found.videos) == ["a.mp4", "b.mp4"]
        assert {Path(uri).name: why for uri, why in found.passed_over.items()} == {
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
def test_addresses_that_are_not_read_say_so_at_once(argument: str, kind: str, tmp_path: Path) -> None:
    for named in (argument, str(touch(tmp_path / "list.txt", argument + "\n"))):
        with pytest.raises(UserError) as caught:
            find_sources([named])
        assert caught.value.kind == kind
