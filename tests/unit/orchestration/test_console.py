"""Tables and progress show texts as they are, whatever signs are in them; in a log a table's words stay whole."""

import os
import subprocess
import sys

import pytest

from uniavgen.orchestration import console


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


WIDE = "from uniavgen.orchestration.console import table; table('orders', [f'measure {n}' for n in range(9)], [['reproduced'] * 9])"


def in_a_log(**environment: str) -> list[str]:
    free = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment
    done = subprocess.run(
        [sys.executable, "-c", WIDE], capture_output=True, text=True, timeout=60, check=True, env=free
    )
    return done.stderr.splitlines()


def test_a_wide_table_is_whole_in_a_log_unless_columns_say_how_wide_it_is() -> None:
    assert any(line.count("reproduced") == 9 for line in in_a_log())
    assert max(map(len, in_a_log(COLUMNS="60"))) == 60
