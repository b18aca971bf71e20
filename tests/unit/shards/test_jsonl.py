"""JSON lines: incremental reading, and recovery from half-written lines."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from uniavgen.shards.jsonl import append_row, read_rows


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), max_size=8),
    st.integers(1, 3),
    st.data(),
)
def test_incremental_reading_gives_every_row_once(
    rows: list[dict[str, int]], most: int, data: st.DataObject
) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path, end, seen = Path(folder) / "log", 0, []
        for row in rows:
            append_row(path, row)
            if data.draw(st.booleans()):
                result = read_rows(path, end, most)
                assert len(result.rows) <= most
                seen, end = seen + result.rows, result.end
        assert seen + read_rows(path, end).rows == rows


def test_reader_waits_for_a_half_line_and_skips_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read_rows(path) == read_rows(path, 0, 5)
    append_row(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "ti')
    result = read_rows(path)
    assert (result.rows, result.damaged) == ([{"step": 1}], 0)
    append_row(path, {"step": 3})
    result = read_rows(path, result.end)
    assert (result.rows, result.damaged, result.end) == ([{"step": 3}], 1, path.stat().st_size)
    assert [json.loads(line) for line in path.read_text().splitlines()[::2]] == [{"step": 1}, {"step": 3}]
