"""What the user names becomes a list of videos: every one once, nothing dropped without a word."""

from pathlib import Path

import pytest

from ingest.sources import content_id, find_sources
from shards.errors import UserError


def touch(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_a_folder_gives_its_videos_at_any_depth_in_order_and_names_the_rest(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.MOV", "deep/er/c.mkv", "SHA256SUMS", "notes.txt"):
        touch(tmp_path / name)
    found = find_sources([str(tmp_path)])
    assert [Path(video).name for video in found.videos] == ["a.MOV", "b.mp4", "c.mkv"]
    assert sorted(Path(path).name for path in found.passed_over) == ["SHA256SUMS", "notes.txt"]


def test_a_file_named_outright_is_taken_whatever_its_name(tmp_path: Path) -> None:
    odd = touch(tmp_path / "speech.bin")
    assert find_sources([str(odd)]).videos == [str(odd)]


def test_a_video_named_in_three_ways_is_taken_once(tmp_path: Path) -> None:
    video = touch(tmp_path / "v.mp4")
    listing = touch(tmp_path / "list.txt", "# mine\nv.mp4\n\n")
    found = find_sources([str(video), str(tmp_path / "*.mp4"), str(listing), str(tmp_path)])
    assert found.videos == [str(video)]


def test_a_listed_file_that_is_missing_stops_nobody(tmp_path: Path) -> None:
    touch(tmp_path / "here.mp4")
    listing = touch(tmp_path / "list.txt", "gone.mp4\nhere.mp4\n")
    assert [Path(video).name for video in find_sources([str(listing)]).videos] == ["gone.mp4", "here.mp4"]
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
