"""Lines that others append to: read on from where one stood, whole lines only, and past what a full disk left."""

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
def test_reading_on_gives_every_row_once(rows: list[dict[str, int]], most: int, data: st.DataObject) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path, end, seen = Path(folder) / "log", 0, []
        for row in rows:
            append_row(path, row)
            if data.draw(st.booleans()):
                found = read_rows(path, end, most)
                assert len(found.rows) <= most
                seen, end = seen + found.rows, found.end
        assert seen + read_rows(path, end).rows == rows


def test_half_a_line_is_waited_for_and_a_damaged_one_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read_rows(path) == read_rows(path, 0, 5)
    append_row(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2, "ti')
    found = read_rows(path)
    assert (found.rows, found.damaged) == ([{"step": 1}], 0)
    append_row(path, {"step": 3})
    found = read_rows(path, found.end)
    assert (found.rows, found.damaged, found.end) == ([{"step": 3}], 1, path.stat().st_size)
    assert [json.loads(line) for line in path.read_text().splitlines()[::2]] == [{"step": 1}, {"step": 3}]
