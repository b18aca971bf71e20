"""Files are written completely, and their digest is computed while they are written."""

from __future__ import annotations

import hashlib
import resource
import tempfile
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uniavgen.train.checkpoint import saving
from uniavgen.train.checkpoint.run_folder import digest
from uniavgen.train.checkpoint.saving import HashedFile, write_hashed


@given(pieces=st.lists(st.binary(max_size=300)), small=st.integers(0, 50), piece=st.integers(1, 100))
def test_write_hashed_returns_the_digest_of_the_file(pieces: list[bytes], small: int, piece: int) -> None:
    """For all sizes of chunks and all limits for the second thread."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(saving, "SMALL_BYTES", small)
        patch.setattr(saving, "CHUNK_BYTES", piece)
        path = Path(folder) / "file"
        sha256 = write_hashed(path, lambda file: [file.write(part) for part in pieces])
        assert path.read_bytes() == b"".join(pieces)
        assert sha256 == hashlib.sha256(b"".join(pieces)).hexdigest()


def test_caller_may_reuse_its_buffer_after_write(tmp_path: Path) -> None:
    def write(file: HashedFile) -> None:
        buffer = bytearray(2**20)
        for number in range(8):
            buffer[:] = bytes([number]) * len(buffer)
            assert file.write(buffer) == len(buffer)

    sha256 = write_hashed(tmp_path / "file", write)
    assert (tmp_path / "file").read_bytes() == b"".join(bytes([number]) * 2**20 for number in range(8))
    assert sha256 == digest(tmp_path / "file")


def test_tensors_saved_hashed_load_back(tmp_path: Path) -> None:
    state = {
        "whole": torch.randn(300_000),
        "part": torch.randn(10, 10)[:, 3],
        "name": "stage",
        "none": torch.zeros(0),
    }
    sha256 = write_hashed(tmp_path / "state.pt", partial(torch.save, state))
    assert sha256 == digest(tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt")
    assert loaded["name"] == "stage"
    assert all(torch.equal(loaded[name], state[name]) for name in ("whole", "part", "none"))


@pytest.mark.parametrize("room", [0, 100_000, 1_000_000])
def test_full_disk_raises_the_system_error(tmp_path: Path, room: int) -> None:
    """The system refuses files over `room` bytes, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(OSError, match="too large") as caught:
            write_hashed(tmp_path / "state.pt", partial(torch.save, {"whole": torch.randn(300_000)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.strerror


def test_error_of_the_writer_is_raised(tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="local object|pickle"):
        write_hashed(tmp_path / "state.pt", partial(torch.save, {"function": lambda: None}))
