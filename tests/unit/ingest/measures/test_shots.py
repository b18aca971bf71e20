"""Step `shots`: small frames are read from a file as an array, without keeping them in memory."""

from pathlib import Path

import numpy as np

from uniavgen.ingest.engine.watchdog import resident_bytes
from uniavgen.ingest.measures.shots import SHOT_FRAME_BYTES, map_shot_frames


def test_mapped_frames_equal_file_for_every_kind_of_index(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    expected = np.random.default_rng(0).integers(0, 256, (40, 27, 48, 3), np.uint8)
    expected.tofile(tiny)
    with tiny.open("ab") as file:
        file.write(b"half a frame")
    frames = map_shot_frames(tiny)
    assert frames.shape == expected.shape
    for index in (3, slice(5, 9), np.array([0, 0, 39, 2])):
        np.testing.assert_array_equal(frames[index], expected[index])
    np.testing.assert_array_equal(np.stack(list(frames)), expected)
    assert not np.shares_memory(frames[1:3], frames)


def test_reading_all_frames_keeps_no_memory(tmp_path: Path) -> None:
    tiny = tmp_path / "tiny"
    tiny.write_bytes(bytes(range(256)) * (SHOT_FRAME_BYTES * 50_000 // 256))
    frames = map_shot_frames(tiny)
    before = resident_bytes()
    total = sum(
        int(frames[first : first + 1000].sum(dtype=np.int64)) for first in range(0, len(frames), 1000)
    )
    assert total > 0
    assert resident_bytes() - before < 40 * 2**20 < tiny.stat().st_size / 4


def test_empty_file_is_empty_array(tmp_path: Path) -> None:
    (tmp_path / "tiny").touch()
    assert map_shot_frames(tmp_path / "tiny").shape == (0, 27, 48, 3)
