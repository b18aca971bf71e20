"""Clip files: no media file without a clip, whatever happens between the first cut and the commit."""

from pathlib import Path

from uniavgen.ingest.engine.clip_files import ClipFiles

SOURCE = "cd" * 16


def cut(files: ClipFiles, clip: str) -> None:
    for extension in ("mp4", "flac", "face.npz"):
        files.write(clip, extension, b"x")
    files.mark_cut(SOURCE, clip)


def clips_on_disk(root: Path) -> set[str]:
    return {path.name.partition(".")[0] for path in (root / "media").rglob("*") if path.is_file()}


def test_cut_clip_is_kept_unless_recipe_changed_or_file_is_missing(tmp_path: Path) -> None:
    files = ClipFiles(tmp_path)
    assert files.start_cutting(SOURCE, {"aa": 1, "bb": 1}) == {"aa", "bb"}
    cut(files, "aa")
    # the run is killed here
    files = ClipFiles(tmp_path)
    assert files.start_cutting(SOURCE, {"aa": 1, "bb": 1}) == {"bb"}
    cut(files, "bb")
    assert files.start_cutting(SOURCE, {"aa": 2, "bb": 1}) == {"aa"}
    cut(files, "aa")
    files.path("bb", "mp4").unlink()
    assert files.start_cutting(SOURCE, {"aa": 2, "bb": 1}) == {"bb"}


def test_recipe_counts_only_after_its_file_is_written(tmp_path: Path) -> None:
    files = ClipFiles(tmp_path)
    files.start_cutting(SOURCE, {"aa": 1})
    cut(files, "aa")
    files.start_cutting(SOURCE, {"aa": 2})  # killed before the new file was written: the old one remains
    assert files.start_cutting(SOURCE, {"aa": 1}) == {"aa"}


def test_superseded_clips_are_deleted_at_the_commit_only(tmp_path: Path) -> None:
    files = ClipFiles(tmp_path)
    files.start_cutting(SOURCE, {"aa": 1, "bb": 1})
    for clip in ("aa", "bb"):
        cut(files, clip)
    files.keep_only(SOURCE, ["aa", "bb"])
    files.start_cutting(SOURCE, {"bb": 1, "cc": 1})
    cut(files, "cc")
    assert clips_on_disk(tmp_path) == {"aa", "bb", "cc"}
    files.keep_only(SOURCE, ["bb", "cc"])
    assert clips_on_disk(tmp_path) == {"bb", "cc"}
    assert files.start_cutting(SOURCE, {"bb": 1, "cc": 1}) == set()


def test_uncommitted_sources_of_dead_runs_only(tmp_path: Path) -> None:
    for run, source in (("host-1", "11" * 16), ("host-2", "22" * 16)):
        ClipFiles(tmp_path, run).start_cutting(source, {run: 1})
    files = ClipFiles(tmp_path)
    assert files.uncommitted_sources(lambda run: run == "host-2") == ["11" * 16]
    files.keep_only("11" * 16, [])
    assert files.uncommitted_sources(lambda run: False) == ["22" * 16]
