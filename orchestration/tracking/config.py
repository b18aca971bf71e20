"""Settings of the tracker: where runs are recorded."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from uniavgen.shards.uris import sqlite_uri


class TrackingConfig(BaseModel):
    """Where and how MLflow records runs."""

    model_config = ConfigDict(extra="forbid")
    uri: str = Field(
        "", description="MLflow tracking URI; empty: $MLFLOW_TRACKING_URI, else a SQLite file in `folder`"
    )
    folder: str = Field("mlflow", description="folder of mlflow.db and artifacts if no server is set")
    experiment: str = Field("uniavgen", description="MLflow experiment of all runs")
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

    @property
    def is_chosen(self) -> bool:
        """Whether a tracker is named, so that it is not only the default in the current folder."""
        default = type(self).model_fields["folder"].default
        return bool(self.uri or os.environ.get("MLFLOW_TRACKING_URI")) or self.folder != default

    def resolved_uri(self) -> str:
        """The tracking URI in use: `uri`, $MLFLOW_TRACKING_URI, or a SQLite file in `folder`."""
        return (
            self.uri
            or os.environ.get("MLFLOW_TRACKING_URI")
            or sqlite_uri(Path(self.folder).absolute() / "mlflow.db")
        )
