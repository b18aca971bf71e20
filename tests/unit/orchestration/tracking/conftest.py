"""A tracker with a database that is copied from an empty one: to create one takes a second of CPU."""

import shutil
from pathlib import Path

import pytest

from uniavgen.orchestration.tracking.config import TrackingConfig
from uniavgen.orchestration.tracking.mlflow_runs import create_database


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    create_database(path)
    return path


@pytest.fixture
def tracking(tmp_path: Path, empty_database: Path) -> TrackingConfig:
    """Its folder is `tmp_path`/mlflow."""
    folder = tmp_path / "mlflow"
    folder.mkdir()
    shutil.copy(empty_database, folder)
    return TrackingConfig(folder=str(folder))
