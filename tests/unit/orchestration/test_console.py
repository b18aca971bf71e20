"""Tables and progress show texts as they are, whatever signs are in them."""

import pytest

from orchestration import console


def test_brackets_in_titles_and_cells_are_shown_and_are_no_markup(capfd: pytest.CaptureFixture[str]) -> None:
    # a name with a closing tag would end the command with an error of the display
    console.table("shards in /data/[new]", ("file", "hours"), [("show [1080p].mp4", 1.5), ("[/x]", None)])
    said = capfd.readouterr().err
    for text in ("/data/[new]", "show [1080p].mp4", "[/x]"):
        assert text in said


def test_brackets_in_a_progress_label_are_shown(capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress("to s3://bucket/[new]", total=1) as bar:
        bar.advance(bar.task_ids[0])
    assert "to s3://bucket/[new]" in capfd.readouterr().err
