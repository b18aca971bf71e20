"""What the program wrote is never its input: corpora, training runs, MLflow's artifacts."""

from pathlib import Path

import pytest

from uniavgen.ingest.io.sources import find_sources
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder of raw videos that also holds what the program wrote."""
    for name in (
        "raw/a.mp4",
        "raw/deep/b.mp4",
        "raw/samples/c.mp4",
        "raw/artifacts/d.mp4",
        "raw/runs/one/joint/stage.json",
        "raw/runs/one/joint/validation/joint.mp4",
        "raw/runs/one/samples/dubbing.mp4",
        "raw/mlflow/mlflow.db",
        "raw/mlflow/artifacts/1/report/x.mp4",
        "raw/mlruns/0/x.mp4",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for name in ("raw/corpus", "raw/deep/corpus 2"):
        root = Corpus.create(tmp_path / name).root
        (root / "media" / "ab").mkdir(parents=True)
        (root / "media" / "ab" / "clip.mp4").write_text("x")
    return tmp_path / "raw"


RAW = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


def names(arguments: list[str]) -> list[str]:
    return sorted(Path(uri).name for uri in find_sources(arguments).videos)


def test_folder_with_a_corpus_gives_its_raw_videos_only(raw: Path) -> None:
    found = find_sources([str(raw)])
    assert names([str(raw)]) == RAW
    told = {str(Path(uri).relative_to(raw)): why for uri, why in found.passed_over.items()}
    assert {name: why for name, why in told.items() if "not a video" not in why} == {
        "corpus": "a corpus of this program",
        "deep/corpus 2": "a corpus of this program",
        "runs/one/joint": "a training stage of this program",
        "runs/one/samples": "samples of a training run",
        "mlflow/artifacts": "artifacts of MLflow",
        "mlruns": "artifacts of MLflow",
    }


def test_every_way_to_name_them_passes_the_corpus_over(raw: Path, tmp_path: Path) -> None:
    assert names([str(raw / "**" / "*.mp4")]) == RAW
    assert names([str(raw / "*")]) == RAW
    assert names([str(path) for path in raw.iterdir() if path.suffix in ("", ".mp4")]) == RAW
    every = "\n".join(str(path) for path in raw.rglob("*.mp4"))
    (tmp_path / "list.txt").write_text(every)
    assert names([str(tmp_path / "list.txt")]) == RAW
    (tmp_path / "link").symlink_to(raw)
    assert names([str(tmp_path / "link")]) == RAW
    (raw / "linked.mp4").symlink_to(raw / "corpus" / "media" / "ab" / "clip.mp4")
    assert names([str(raw)]) == RAW


@pytest.mark.parametrize("inside", [".", "media", "media/ab", "media/ab/clip.mp4", "shards"])
@pytest.mark.parametrize("linked", [False, True])
def test_corpus_as_the_only_input_is_refused(raw: Path, tmp_path: Path, inside: str, linked: bool) -> None:
    (raw / "corpus" / "shards").mkdir()
    named = raw / "corpus" / inside
    if linked:
        (tmp_path / "link").symlink_to(named)
        named = tmp_path / "link"
    with pytest.raises(UserError, match="a corpus of this program, which is never an input"):
        find_sources([str(named)])


def test_users_own_folder_in_a_corpus_is_an_input(raw: Path) -> None:
    (raw / "corpus" / "originals").mkdir()
    (raw / "corpus" / "originals" / "e.mp4").write_text("x")
    assert names([str(raw / "corpus" / "originals")]) == ["e.mp4"]
    assert names([str(raw)]) == RAW
