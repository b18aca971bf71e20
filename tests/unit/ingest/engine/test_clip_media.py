"""No media file without a clip, whatever happens between the first cut and the commit."""

from pathlib import Path

from uniavgen.ingest.engine.clip_files import ClipMedia

SOURCE = "cd" * 16


def cut(media: ClipMedia, clip: str) -> None:
    for extension in ("mp4", "flac", "face.npz"):
        media.write(clip, extension, b"x")
    media.done(SOURCE, clip)


def standing(root: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in (root / "media").rglob("*") if path.is_file()}


def test_what_was_cut_is_not_cut_again_unless_it_must_look_different_or_is_gone(tmp_path: Path) -> None:
    media = ClipMedia(tmp_path)
    assert media.begin(SOURCE, {"aa": 1, "bb": 1}) == {"aa", "bb"}
    cut(media, "aa")
    # the run is killed here
    media = ClipMedia(tmp_path)
    assert media.begin(SOURCE, {"aa": 1, "bb": 1}) == {"bb"}
    cut(media, "bb")
    assert media.begin(SOURCE, {"aa": 2, "bb": 1}) == {"aa"}
    cut(media, "aa")
    media.path("bb", "mp4").unlink()
    assert media.begin(SOURCE, {"aa": 2, "bb": 1}) == {"bb"}


def test_a_recipe_is_believed_only_once_its_file_stands(tmp_path: Path) -> None:
    media = ClipMedia(tmp_path)
    media.begin(SOURCE, {"aa": 1})
    cut(media, "aa")
    media.begin(SOURCE, {"aa": 2})  # and killed before the new file came: the old one stands
    assert media.begin(SOURCE, {"aa": 1}) == {"aa"}


def test_clips_that_are_no_more_go_with_the_commit_and_not_before(tmp_path: Path) -> None:
    media = ClipMedia(tmp_path)
    media.begin(SOURCE, {"aa": 1, "bb": 1})
    for clip in ("aa", "bb"):
        cut(media, clip)
    media.keep_only(SOURCE, ["aa", "bb"])
    media.begin(SOURCE, {"bb": 1, "cc": 1})
    cut(media, "cc")
    assert standing(tmp_path) == {"aa", "bb", "cc"}
    media.keep_only(SOURCE, ["bb", "cc"])
    assert standing(tmp_path) == {"bb", "cc"}
    assert media.begin(SOURCE, {"bb": 1, "cc": 1}) == set()


def test_what_a_dead_run_left_is_found_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    for owner, source in (("host-1", "11" * 16), ("host-2", "22" * 16)):
        ClipMedia(tmp_path, owner).begin(source, {owner: 1})
    media = ClipMedia(tmp_path)
    assert media.abandoned(lambda owner: owner == "host-2") == ["11" * 16]
    media.keep_only("11" * 16, [])
    assert media.abandoned(lambda owner: False) == ["22" * 16]
