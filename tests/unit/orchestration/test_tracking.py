"""Runs in a real MLflow store: they end as their work ended, and a second command continues the first one's run."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from uniavgen.orchestration.tracking.mlflow_runs import TrackingConfig, code_version, open_run


def test_a_run_ends_as_its_work_did_and_is_continued(tmp_path: Path) -> None:
    config = TrackingConfig(folder=str(tmp_path / "mlflow"))
    client = MlflowClient(config.resolved_uri())
    with open_run(config, tmp_path / "home", "first") as run:
        run.params({"seed": 1})
        run.metrics({"loss": 2.0, "broken": float("nan")}, step=3)
    found = client.get_run(run.id)
    assert (found.info.status, found.data.params, found.data.metrics) == (
        "FINISHED",
        {"seed": "1"},
        {"loss": 2.0},
    )
    with pytest.raises(ValueError, match="planted"), open_run(config, tmp_path / "home", "first") as again:
        raise ValueError("planted")
    assert again.id == run.id
    assert client.get_run(run.id).info.status == "FAILED"


@pytest.mark.parametrize("content", ["{", "[]", '{"uri": "elsewhere"}', ""])
def test_a_note_that_names_no_run_of_the_store_is_written_anew(tmp_path: Path, content: str) -> None:
    config = TrackingConfig(folder=str(tmp_path / "mlflow"))
    note = tmp_path / "tracking.json"
    note.write_text(content)
    with open_run(config, tmp_path, "first") as run:
        pass
    assert json.loads(note.read_text())["run_id"] == run.id


def test_a_machine_without_git_tells_the_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert code_version().startswith(version("uniavgen"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code_version() == version("uniavgen")
