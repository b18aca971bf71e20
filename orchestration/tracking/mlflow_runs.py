"""MLflow: one run per corpus build, one parent run per training plan with a child per stage.

Runs are addressed by id through the client, never through MLflow's global state, so that the command line, Ray workers
and tests may all write at once. The ids stand in a small `tracking.json` beside what they track; a second command on the
same corpus, or a resumed stage, continues its run.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from uniavgen.orchestration import console
from uniavgen.shards.errors import Stopped, UserError

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from uniavgen.shards.corpus.tables import Corpus


MOST_TEXT = 5000
"""Characters of a tag that every MLflow server takes."""

REQUEST_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
"""Variable by which MLflow's client knows how many seconds an answer may take."""
UPLOAD_S = 3600
"""Seconds in which a server must have stored a file that it was sent."""

SOFTWARE = ("torch", "deepspeed", "ray", "mlflow")
"""Packages whose versions a run notes, beside Python's and the program's own."""


class TrackingConfig(BaseModel):
    """Where runs are recorded."""

    model_config = ConfigDict(extra="forbid")
    uri: str = Field(
        "", description="MLflow tracking URI; empty: $MLFLOW_TRACKING_URI, else a sqlite file in `folder`"
    )
    folder: str = Field("mlflow", description="home of mlflow.db and artifacts where no server is named")
    experiment: str = Field("uniavgen", description="MLflow experiment that holds every run")
    system_metrics_s: float = Field(
        10.0, ge=0, description="seconds between system metrics of the driver's machine; 0: none"
    )
    registered_model: str = Field(
        "uniavgen",
        description="model whose versions are the stages' weights, each under its stage's alias; empty: none",
    )

    def resolved_uri(self) -> str:
        """The URI that is really used."""
        return (
            self.uri
            or os.environ.get("MLFLOW_TRACKING_URI")
            or f"sqlite:///{Path(self.folder).absolute()}/mlflow.db"
        )


@dataclass(frozen=True)
class Run:
    """One MLflow run. It holds no connection, so it can be sent to another process.

    As a context manager it ends the run: as finished, as killed where somebody stopped it, or as failed.
    """

    uri: str
    id: str

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; one that was logged before keeps its first value, as MLflow demands."""
        from mlflow.entities import Param

        client = _client(self.uri)
        known = client.get_run(self.id).data.params
        new = [Param(key, str(value)[:6000]) for key, value in values.items() if key not in known]
        for start in range(0, len(new), 100):
            client.log_batch(self.id, params=new[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log finite metrics of one step (MLflow's database refuses the others)."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        logged = [
            Metric(key, float(value), now, step) for key, value in values.items() if math.isfinite(value)
        ]
        _client(self.uri).log_batch(self.id, metrics=logged)

    def metrics_of(self, rows: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Log finite metrics of many steps, each with its step, time (s since 1970) and values, in few requests."""
        from mlflow.entities import Metric

        logged = [
            Metric(key, float(value), int(at * 1000), step)
            for step, at, values in rows
            for key, value in values.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(logged), 1000):  # MLflow's limit
            _client(self.uri).log_batch(self.id, metrics=logged[start : start + 1000])

    def register(self, name: str, weights: Path, alias: str) -> int:
        """Store weights with the run, as the next version of registered model `name`, which `alias` then points to."""
        from mlflow.exceptions import MlflowException

        client = _client(self.uri)
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        folder = f"model-{alias}"
        with patient():
            client.log_artifact(self.id, str(weights), folder)
        source = f"{client.get_run(self.id).info.artifact_uri}/{folder}"
        version = client.create_model_version(name, source, self.id, tags={"stage": alias}).version
        client.set_registered_model_alias(name, alias, version)
        return int(version)

    def registered(self, name: str) -> bool:
        """Whether a version of registered model `name` stems from this run."""
        return bool(
            _client(self.uri).search_model_versions(f"name='{name}' and run_id='{self.id}'", max_results=1)
        )

    def describe(self, note: Callable[[str], str], error: BaseException | None = None) -> None:
        """Replace the description, Markdown on top of the run's page, by what `note` makes of the error, "" for none."""
        said = str(error) or type(error).__name__ if error else ""
        with survivable("a description"):
            self.tags({"mlflow.note.content": note(said)[:MOST_TEXT]})

    def text(self, text: str, name: str) -> None:
        """Store a text as a file of that name."""
        _client(self.uri).log_text(self.id, text, name)

    def tags(self, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            _client(self.uri).set_tag(self.id, key, value)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Store a file, or every file of a folder."""
        client = _client(self.uri)
        with patient():
            (client.log_artifacts if path.is_dir() else client.log_artifact)(
                self.id, str(path), folder or None
            )

    def remove_artifacts(self, folder: str) -> None:
        """Take a folder of artifacts out of the run's store; nothing where there is none."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        store = get_artifact_repository(_client(self.uri).get_run(self.id).info.artifact_uri)
        if any(item.path == folder for item in store.list_artifacts()):
            store.delete_artifacts(folder)

    def dataset(self, corpus: Corpus, version: str, profile: Mapping[str, Any]) -> None:
        """Name the corpus version as this run's input, visible in MLflow's lineage."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": str(corpus.root)})
        dataset = Dataset(corpus.root.name, version, "local", source, profile=json.dumps(profile))
        _client(self.uri).log_inputs(
            self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        )

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.end(kind)

    def end(self, kind: type[BaseException] | None) -> None:
        """End the run as finished, or by the `kind` of error that did."""
        stopped = kind is not None and issubclass(kind, Stopped | KeyboardInterrupt)
        with survivable("the end of a run"):
            _client(self.uri).set_terminated(
                self.id, "KILLED" if stopped else "FAILED" if kind else "FINISHED"
            )


def impatient() -> None:
    """Let MLflow's client in this process give up soon on a server that does not answer: by default that takes it minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault(REQUEST_TIMEOUT, "10")


@contextmanager
def patient() -> Iterator[None]:
    """Wait for a server that stores a large file before it answers, as it does with weights of gigabytes."""
    before = os.environ.get(REQUEST_TIMEOUT)
    os.environ[REQUEST_TIMEOUT] = str(max(UPLOAD_S, int(before or 0)))
    try:
        yield
    finally:
        os.environ.pop(REQUEST_TIMEOUT)
        if before is not None:
            os.environ[REQUEST_TIMEOUT] = before


@contextmanager
def survivable(what: str) -> Iterator[None]:
    """Let a tracker's defect be told and go on: the work that it tracks is worth more."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        console.console.print(f"warning: MLflow did not take {what}: {reason}", style="yellow", markup=False)


@contextmanager
def system_metrics(run: Run | None, interval_s: float) -> Iterator[None]:
    """Log processor, memory, disk, network and GPUs of this machine to the run, by MLflow's own monitor; 0 logs none."""
    if not run or not interval_s:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = None
    with survivable("system metrics"):
        monitor = SystemMetricsMonitor(
            run.id, sampling_interval=interval_s, resume_logging=True, tracking_uri=run.uri
        )
        monitor.start()
    try:
        yield
    finally:
        with survivable("system metrics"):
            if monitor:
                monitor.finish()


def open_run(config: TrackingConfig, home: Path, name: str, *, parent: Run | None = None) -> Run:
    """The run that tracks the folder `home`: the one noted in its `tracking.json`, else a new one, noted there.

    Raises UserError where the tracking store cannot be reached.
    """
    uri = config.resolved_uri()
    note = home / "tracking.json"
    try:
        client, noted = _client(uri), _noted(note)
        if noted.get("uri") == uri and _exists(client, str(noted.get("run_id"))):
            client.update_run(noted["run_id"], status="RUNNING")
            return Run(uri, noted["run_id"])
        tags = {"mlflow.runName": name, **environment()}
        if parent:
            tags["mlflow.parentRunId"] = parent.id
        run = Run(uri, client.create_run(experiment_id(config), tags=tags).info.run_id)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(
            f"the MLflow store does not answer: {reason}", where=uri, hint="start it or set tracking.uri"
        ) from error
    home.mkdir(parents=True, exist_ok=True)
    part = note.with_suffix(".part")
    part.write_text(json.dumps({"uri": uri, "run_id": run.id}) + "\n")
    os.replace(part, note)
    return run


def runs_on(config: TrackingConfig, corpus_root: Path) -> list[dict[str, str]]:
    """Runs of the experiment whose dataset input is this corpus, oldest first: `name`, `stage`, `started` (UTC) and the
    `corpus_version` that they trained on."""
    client = _client(config.resolved_uri())
    found, token = [], None
    while True:
        page = client.search_runs(
            [experiment_id(config)], order_by=["attributes.start_time ASC"], page_token=token
        )
        for run in page:
            stage = run.data.params.get("stage", "")
            versions = [
                i.dataset.digest
                for i in run.inputs.dataset_inputs
                if _source_uri(i.dataset.source) == str(corpus_root)
            ]
            if stage and versions:
                started = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.info.start_time / 1000))
                row = {
                    "name": run.info.run_name,
                    "stage": stage,
                    "started": started,
                    "corpus_version": versions[-1],
                }
                found.append(row | {"run_id": run.info.run_id})
        token = page.token
        if not token:
            return found


def _source_uri(source: str) -> str:
    try:
        return str(json.loads(source)["uri"])
    except (ValueError, KeyError, TypeError):
        return ""  # another program's dataset


def experiment_id(config: TrackingConfig) -> str:
    """The experiment that holds every run, made where there is none; a sqlite store keeps its artifacts beside it."""
    uri = config.resolved_uri()
    client = _client(uri)
    found = client.get_experiment_by_name(config.experiment)
    if found:
        return str(found.experiment_id)
    store = (Path(config.folder).absolute() / "artifacts").as_uri() if uri.startswith("sqlite:") else None
    # without a kind MLflow's page takes the runs for evaluations of a language model
    return str(
        client.create_experiment(
            config.experiment, store, tags={"mlflow.experimentKind": "custom_model_development"}
        )
    )


def environment() -> dict[str, str]:
    """What a run was made by and where, as tags; those of MLflow's own names fill its columns User and Source."""
    from importlib.metadata import version

    return {
        "mlflow.user": _user(),
        "mlflow.source.name": "uniavgen",
        "mlflow.source.type": "LOCAL",
        "code_version": code_version(),
        "environment.host": platform.node(),
        "environment.python": platform.python_version(),
        **{f"environment.{package}": version(package) for package in SOFTWARE},
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        return str(os.getuid())


def code_version() -> str:
    """Release and, in a checkout, the commit where there is git to tell it."""
    from importlib.metadata import version

    release = version("uniavgen")
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True
        )
    except OSError:
        return release
    return f"{release}+{done.stdout.strip()}" if done.returncode == 0 else release


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, the way `--set` writes them."""
    result: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= flat(value, f"{name}.")
        else:
            result[name] = value
    return result


def _client(uri: str) -> MlflowClient:
    import logging

    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    from mlflow.tracking import MlflowClient

    # after the import, which sets its own levels; creating the database is no news
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient(uri)


def _noted(note: Path) -> dict[str, Any]:
    """What a `tracking.json` says; {} where there is none, or where it is damaged."""
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has the run, not deleted. Raises MlflowException where it does not answer."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
