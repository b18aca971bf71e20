"""Runs in a real MLflow store: they end as their work ended, and a second command continues the first one's run."""

from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from orchestration.tracking import TrackingConfig, open_run


def test_a_run_ends_as_its_work_did_and_is_continued(tmp_path: Path) -> None:
    config = TrackingConfig(folder=str(tmp_path / "mlflow"))
    client = MlflowClient(config.resolved_uri())
    with open_run(config, tmp_path / "home", "first") as run:
        run.params({"seed": 1})
        run.metrics({"loss": 2.0, "broken": float("nan")}, step=3)
    found = client.get_run(run.id)
    assert (found.info.status, found.data.params, found.data.metrics) == ("FINISHED", {"seed": "1"}, {"loss": 2.0})
    with pytest.raises(ValueError, match="planted"), open_run(config, tmp_path / "home", "first") as again:
        raise ValueError("planted")
    assert again.id == run.id
    assert client.get_run(run.id).info.status == "FAILED"
