"""Console output: brackets in texts are not markup; wide tables stay complete in a log."""

import ctypes
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


NOISY = """
import atexit, ctypes, logging, os, subprocess, sys
early = logging.getLogger("early")
early.addHandler(logging.StreamHandler(sys.stdout))
from uniavgen.orchestration.commands.common import run_body

def body():
    late = logging.getLogger("late")
    late.addHandler(logging.StreamHandler(sys.stdout))
    late.warning("log of a library")
    early.warning("log of a library that was there before")
    print("print of a library")
    sys.__stdout__.write("text past sys.stdout")
    os.write(1, b"bytes of C code")
    ctypes.CDLL(None).puts(b"buffered text of C code")
    subprocess.run(["echo", "output of a child"])
    atexit.register(print, "last words")
    if sys.argv[1] == "bad":
        raise ValueError("planted")
    return {"answer": 42, "loss": float("nan")}

import typer
app = typer.Typer()
app.command()(lambda how: run_body(body, True))
app()
"""


@pytest.mark.parametrize(
    ("end", "expected"), [("good", {"answer": 42, "loss": None}), ("bad", {"exit_code": 1})]
)
def test_stdout_of_json_is_one_document_whatever_libraries_print(end: str, expected: dict) -> None:
    done = subprocess.run([sys.executable, "-c", NOISY, end], capture_output=True, text=True, timeout=60)
    document = json.loads(done.stdout)
    assert document.items() >= expected.items()
    assert done.returncode == document.get("exit_code", 0)
    for text in ("log of a library", "print of", "past", "bytes of", "buffered", "child", "last words"):
        assert text in done.stderr
    assert ("planted" in document.get("error", "")) is (end == "bad")


def test_stdout_is_given_back_where_it_was_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    with console.summary_on_stdout(True) as print_summary:
        print("noise")
        print_summary({"a": 1})
    print("afterwards")
    assert capfd.readouterr().out == '{"a": 1}\nafterwards\n'


_leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.floats(width=32).map(np.float32),
    st.integers(-(2**31), 2**31 - 1).map(np.int64),
    st.just(Path("/a")),
    st.just(ctypes),
)
_keys = st.one_of(st.text(), st.integers(), st.none())


@given(
    st.dictionaries(
        _keys,
        st.recursive(
            _leaves,
            lambda deep: st.lists(deep) | st.tuples(deep) | st.dictionaries(_keys, deep),
            max_leaves=9,
        ),
    )
)
def test_every_summary_is_strict_json(document: dict) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = console.to_json(document)
    read = json.loads(text, parse_constant=refuse)
    assert "\n" not in text
    assert set(read) == {str(key) for key in document}
    for key, value in document.items():
        if isinstance(value, float) and [str(other) for other in document].count(str(key)) == 1:
            assert read[str(key)] == (value if math.isfinite(value) else None)
