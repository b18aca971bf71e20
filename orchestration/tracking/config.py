"""Settings of the tracker: where runs are recorded."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from uniavgen.shards.errors import UsageError
from uniavgen.shards.uris import absolute_sqlite_uri, local_folder, protocol_of, sqlite_path, sqlite_uri

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
"""Databases that MLflow can use without a server."""


class TrackingConfig(BaseModel):
    """Where and how MLflow records runs."""

    model_config = ConfigDict(extra="forbid")
    uri: str = Field(
        "", description="MLflow tracking URI; empty: $MLFLOW_TRACKING_URI, else a SQLite file in `folder`"
    )
    folder: str = Field(
        "mlflow",
        description="folder of mlflow.db and artifacts if `uri` is empty; of artifacts if `uri` is "
        "a database other than SQLite",
    )
    experiment: str = Field("uniavgen", description="MLflow experiment of all runs")
    name: str = Field(
        "", description="name of the run in MLflow, as --name sets it; empty: kind and folder of the work"
    )
    system_metrics_s: float = Field(
        10.0, ge=0, description="seconds between system metrics of the driver's machine; 0: none"
    )
    registered_model: str = Field(
        "uniavgen",
        description="registered model: each stage's weights become a version with the stage's name as alias; "
        "empty: none",
    )

    parent: str = Field(
        "", description="id of the MLflow run that runs are put below; `uniavgen run` sets that of its plan"
    )

    @field_validator("folder")
    @classmethod
    def _is_local(cls, folder: str) -> str:
        try:
            return str(local_folder(folder, "tracking.folder"))
        except UsageError as error:
            raise ValueError(error.what) from error

    @property
    def is_chosen(self) -> bool:
        """Whether a tracker is named, so that it is not only the default in the current folder."""
        default = type(self).model_fields["folder"].default
        return bool(self.uri or os.environ.get("MLFLOW_TRACKING_URI")) or self.folder != default

    def resolved_uri(self) -> str:
        """The tracking URI in use: `uri`, $MLFLOW_TRACKING_URI, or a SQLite file in `folder`."""
        chosen = self.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        return (
            absolute_sqlite_uri(chosen) if chosen else sqlite_uri(Path(self.folder).absolute() / "mlflow.db")
        )

    def artifacts_uri(self) -> str | None:
        """Where the artifacts of a new experiment go; None leaves it to the server or the store.

        Beside an SQLite file. Other databases have no place for files: MLflow would take the current folder.
        """
        uri = self.resolved_uri()
        if database := sqlite_path(uri):
            return (database.parent / "artifacts").as_uri()
        if protocol_of(uri).partition("+")[0] in DATABASES:
            return (Path(self.folder).absolute() / "artifacts").as_uri()
        return None

    def run_name(self, kind: str, home: Path) -> str:
        """The name of a run: `name`, else its kind and the last two parts of the folder of its work."""
        return self.name or f"{kind} {'/'.join(home.absolute().parts[1:][-2:])}"
