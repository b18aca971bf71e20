"""Console output: brackets in texts are not markup; wide tables stay complete in a log."""

import os
import subprocess
import sys

import pytest

from uniavgen.orchestration.output import console


def test_brackets_in_tables_are_not_markup(capfd: pytest.CaptureFixture[str]) -> None:
    # a name with a closing tag would end the command with an error of the display
    console.table("shards in /data/[new]", ("file", "hours"), [("show [1080p].mp4", 1.5), ("[/x]", None)])
    said = capfd.readouterr().err
    for text in ("/data/[new]", "show [1080p].mp4", "[/x]"):
        assert text in said


def test_brackets_in_progress_labels_are_not_markup(capfd: pytest.CaptureFixture[str]) -> None:
    with console.progress("to s3://bucket/[new]", total=1) as bar:
        bar.advance()
    assert "to s3://bucket/[new]" in capfd.readouterr().err


WIDE_TABLE = """
from uniavgen.orchestration.output.console import table
table("orders", [f"measure {n}" for n in range(9)], [["reproduced"] * 9])
"""


def log_lines(**environment: str) -> list[str]:
    without_columns = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | environment
    done = subprocess.run(
        [sys.executable, "-c", WIDE_TABLE],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=without_columns,
    )
    return done.stderr.splitlines()


def test_wide_table_is_complete_in_a_log_unless_columns_is_set() -> None:
    assert any(line.count("reproduced") == 9 for line in log_lines())
    assert max(map(len, log_lines(COLUMNS="60"))) == 60
