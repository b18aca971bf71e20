"""Runs in a real MLflow store: final status, continued runs, damaged `tracking.json`, code version."""

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from uniavgen import __version__
from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.orchestration.tracking.environment import code_version
from uniavgen.orchestration.tracking.mlflow_runs import open_run


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
