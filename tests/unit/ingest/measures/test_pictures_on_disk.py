"""An hour of small pictures is read from disk as an array, and takes no memory."""

from pathlib import Path

import numpy as np

from uniavgen.ingest.engine.watchdog import resident_bytes
from uniavgen.ingest.measures.decode_pass import TINY_BYTES, mapped_pictures


def test_what_is_read_equals_the_file_however_it_is_asked_for(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    whole = np.random.default_rng(0).integers(0, 256, (40, 27, 48, 3), np.uint8)
    whole.tofile(tiny)
    with tiny.open("ab") as file:
        file.write(b"half a picture")
    found = mapped_pictures(tiny)
    assert found.shape == whole.shape
    for index in (3, slice(5, 9), np.array([0, 0, 39, 2])):
        np.testing.assert_array_equal(found[index], whole[index])
    np.testing.assert_array_equal(np.stack(list(found)), whole)
    assert not np.shares_memory(found[1:3], found)


def test_reading_all_of_it_leaves_nothing_in_memory(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    tiny.write_bytes(bytes(range(256)) * (TINY_BYTES * 50_000 // 256))
    found = mapped_pictures(tiny)
    before = resident_bytes()
    total = sum(int(found[first : first + 1000].sum(dtype=np.int64)) for first in range(0, len(found), 1000))
    assert total > 0
    assert resident_bytes() - before < 40 * 2**20 < tiny.stat().st_size / 4


def test_no_picture_is_an_empty_array(tmp_path: Path) -> None:
    (tmp_path / "tiny").touch()
    assert mapped_pictures(tmp_path / "tiny").shape == (0, 27, 48, 3)
