"""Runs in a real MLflow store: final status, continued runs, damaged `tracking.json`, code version."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from uniavgen import __version__
from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.orchestration.tracking.corpus_run import record_in_corpus_run
from uniavgen.orchestration.tracking.environment import code_version
from uniavgen.orchestration.tracking.mlflow_runs import create_database, open_run
from uniavgen.shards.corpus.tables import Corpus


def test_run_is_finished_then_continued_and_failed(tmp_path: Path, tracking: TrackingConfig) -> None:
    client = MlflowClient(tracking.resolved_uri())
    with open_run(tracking, tmp_path / "home", "first", "a note") as run:
        run.params({"seed": 1})
        run.metrics({"loss": 2.0, "broken": float("nan")}, step=3)
    stored = client.get_run(run.id)
    assert stored.data.tags["mlflow.note.content"] == "a note"
    assert (stored.info.status, stored.data.params, stored.data.metrics) == (
        "FINISHED",
        {"seed": "1"},
        {"loss": 2.0},
    )
    with (
        pytest.raises(ValueError, match="planted"),
        open_run(tracking, tmp_path / "home", "first", "a note") as again,
    ):
        raise ValueError("planted")
    assert again.id == run.id
    assert client.get_run(run.id).info.status == "FAILED"


@pytest.mark.parametrize("content", ["{", "[]", '{"uri": "elsewhere"}', ""])
def test_tracking_file_without_a_run_of_the_store_is_replaced(
    tmp_path: Path, tracking: TrackingConfig, content: str
) -> None:
    note = tmp_path / "tracking.json"
    note.write_text(content)
    with open_run(tracking, tmp_path, "first", "a note") as run:
        pass
    assert json.loads(note.read_text())["run_id"] == run.id


def test_code_version_is_the_release_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_version().startswith(__version__)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == __version__


def test_database_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    database = tmp_path / "mlflow" / "mlflow.db"
    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        create_database(database)
    assert not database.exists()
    monkeypatch.undo()
    create_database(database)
    assert {path.name for path in database.parent.iterdir()} == {"mlflow.db", ".mlflow.db.lock"}
    with open_run(TrackingConfig(folder=str(database.parent)), tmp_path / "home", "first", "a note") as run:
        run.metrics({"loss": 1.0})


def test_two_processes_on_a_new_database_are_both_recorded(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.orchestration.tracking.mlflow_runs import open_run
folder = Path(sys.argv[1])
with open_run(TrackingConfig(folder=str(folder / "mlflow")), folder / sys.argv[2], sys.argv[2], ""):
    pass
"""
    names = ["one", "two"]
    command = [sys.executable, "-c", program, str(tmp_path)]
    processes = [subprocess.Popen([*command, name]) for name in names]
    assert [process.wait() for process in processes] == [0, 0]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("uniavgen")
    assert experiment
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == names


def test_broken_tracker_is_a_warning_for_a_corpus_command(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mlflow"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(b"this is no database")
    corpus = Corpus.create(tmp_path / "corpus")
    record_in_corpus_run(corpus, TrackingConfig(folder=str(folder)), lambda run: run.metrics({"clips": 1.0}))
    assert "warning: MLflow did not record" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("uri", "folder", "expected"),
    [
        ("", "mlflow", "{here}/mlflow/artifacts"),
        ("sqlite:////data/x/runs.db", "mlflow", "/data/x/artifacts"),
        ("sqlite:///below/runs.db", "mlflow", "{here}/below/artifacts"),
        ("sqlite:///runs.db?timeout=9", "mlflow", "{here}/artifacts"),
        ("sqlite+pysqlite:////data/a%25b/runs.db", "mlflow", "/data/a%25b/artifacts"),
        ("postgresql://user@host/runs", "kept", "{here}/kept/artifacts"),
        ("mysql+pymysql://host/runs", "/kept", "/kept/artifacts"),
        ("http://host:5000", "mlflow", None),
        ("file:///data/mlruns", "mlflow", None),
        ("databricks", "mlflow", None),
    ],
)
def test_artifacts_lie_beside_the_database_and_never_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, folder: str, expected: str | None
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    found = TrackingConfig(uri=uri, folder=folder).artifacts_uri()
    assert found == (expected and "file://" + expected.format(here=tmp_path))


@pytest.mark.parametrize("by_environment", [False, True])
def test_sqlite_uri_writes_only_beside_its_database_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_environment: bool
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = "sqlite:///below/runs.db"
    if by_environment:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    config = TrackingConfig(uri="" if by_environment else uri)
    with open_run(config, tmp_path / "home", "first", "") as run:
        run.text("hello", "hello.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"below", "home"}
    assert len(list((tmp_path / "below" / "artifacts").rglob("hello.txt"))) == 1
    note = json.loads((tmp_path / "home" / "tracking.json").read_text())
    assert note["uri"] == f"sqlite:///{tmp_path}/below/runs.db"  # the same store from another folder
    (tmp_path / "home" / "tracking.json").write_text(json.dumps(note | {"uri": uri}))  # as 0.5 wrote it
    with open_run(config, tmp_path / "home", "first", "") as again:
        assert again == run


def test_runs_are_named_after_their_folders_or_by_choice(tmp_path: Path) -> None:
    config = TrackingConfig(folder=str(tmp_path / "mlflow"))
    assert config.run_name("training", Path("/data/talks/run")) == "training talks/run"
    assert config.run_name("corpus", Path("/c")) == "corpus c"
    home = tmp_path / "home"
    with open_run(config, home, config.run_name("training", home), "") as run:
        pass
    client = MlflowClient(config.resolved_uri())
    assert client.get_run(run.id).info.run_name == f"training {tmp_path.name}/home"
    chosen = config.model_copy(update={"name": "baseline"})
    with open_run(chosen, home, chosen.run_name("training", home), "") as again:
        assert again == run
    with open_run(config, home, config.run_name("training", home), ""):
        pass
    assert client.get_run(run.id).info.run_name == "baseline"  # a chosen name is kept


def test_corpus_run_is_described_by_what_the_corpus_holds(
    tmp_path: Path, make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> None:
    corpus = make_corpus([make_clip("a", 3.0 * i, "a") for i in range(3)])
    failure = {"uri": "x.mp4", "stage": "probe", "error_type": "not-a-video", "message": "", "attempts": 1}
    corpus.upsert("failures", [failure])
    config = TrackingConfig(folder=str(tmp_path / "mlflow"))
    record_in_corpus_run(corpus, config, lambda run: None)
    run_id = json.loads((corpus.root / "tracking.json").read_text())["run_id"]
    note = MlflowClient(config.resolved_uri()).get_run(run_id).data.tags["mlflow.note.content"]
    assert "1 sources (0.00556 h), 3 clips (0.00167 h), 0 of them kept. Failures: not-a-video 1." in note
