"""Runs in a real MLflow store: final status, continued runs, damaged `tracking.json`, code version."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from uniavgen import __version__
from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.orchestration.tracking.corpus_run import record_in_corpus_run
from uniavgen.orchestration.tracking.environment import code_version
from uniavgen.orchestration.tracking.mlflow_runs import create_database, open_run
from uniavgen.shards.corpus.tables import Corpus


def test_run_is_finished_then_continued_and_failed(tmp_path: Path) -> None:
    config = TrackingConfig(folder=str(tmp_path / "mlflow"))
    client = MlflowClient(config.resolved_uri())
    with open_run(config, tmp_path / "home", "first") as run:
        run.params({"seed": 1})
        run.metrics({"loss": 2.0, "broken": float("nan")}, step=3)
    stored = client.get_run(run.id)
    assert (stored.info.status, stored.data.params, stored.data.metrics) == (
        "FINISHED",
        {"seed": "1"},
        {"loss": 2.0},
    )
    with pytest.raises(ValueError, match="planted"), open_run(config, tmp_path / "home", "first") as again:
        raise ValueError("planted")
    assert again.id == run.id
    assert client.get_run(run.id).info.status == "FAILED"


@pytest.mark.parametrize("content", ["{", "[]", '{"uri": "elsewhere"}', ""])
def test_tracking_file_without_a_run_of_the_store_is_replaced(tmp_path: Path, content: str) -> None:
    config = TrackingConfig(folder=str(tmp_path / "mlflow"))
    note = tmp_path / "tracking.json"
    note.write_text(content)
    with open_run(config, tmp_path, "first") as run:
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
    with open_run(TrackingConfig(folder=str(database.parent)), tmp_path / "home", "first") as run:
        run.metrics({"loss": 1.0})


def test_two_processes_on_a_new_database_are_both_recorded(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.orchestration.tracking.mlflow_runs import open_run
folder = Path(sys.argv[1])
with open_run(TrackingConfig(folder=str(folder / "mlflow")), folder / sys.argv[2], sys.argv[2]):
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
