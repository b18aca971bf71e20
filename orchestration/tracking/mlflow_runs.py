"""MLflow runs: one per corpus, one per training with a child run per stage.

Runs are addressed by id through MLflow's client, never through MLflow's global state: the command line, Ray
workers and tests may write at the same time. The file `tracking.json` in a corpus or run folder holds the
run's id, so a second command on the same corpus, or a resumed stage, continues its run.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniavgen.orchestration.output import console
from uniavgen.orchestration.tracking.environment import environment_tags
from uniavgen.shards.errors import Stopped, UserError
from uniavgen.shards.uris import absolute_sqlite_uri, local_path, sqlite_path, sqlite_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from uniavgen.orchestration.tracking.config import TrackingConfig
    from uniavgen.shards.corpus.tables import Corpus

MAX_TAG_LENGTH = 5000
"""Characters of a tag that every MLflow server accepts."""
MAX_PARAM_LENGTH = 6000
"""Characters of a parameter's value (MLflow's limit)."""

NOTE = "mlflow.note.content"
"""Tag that MLflow shows as the description of a run, as Markdown."""

MODEL_NOTE = (
    "Joint audio-video generators trained by uniavgen. Each version is the weights of one finished stage; "
    "the alias of a stage's name points to its newest version."
)
"""Description of the registered model."""

REQUEST_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
"""Environment variable of MLflow's client: seconds until a request fails."""
UPLOAD_TIMEOUT_S = 3600
"""Request timeout while a file is uploaded: a server answers only after it stored the file."""


@dataclass(frozen=True)
class Run:
    """One MLflow run. It holds no connection, so it can be sent to another process.

    As a context manager it ends the run at the end of the block: FINISHED, FAILED, or KILLED if a user
    stopped it.
    """

    uri: str
    id: str

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters. A parameter logged before keeps its first value: MLflow allows no change."""
        from mlflow.entities import Param

        client = _client(self.uri)
        known = client.get_run(self.id).data.params
        new = [Param(key, str(value)[:MAX_PARAM_LENGTH]) for key, value in values.items() if key not in known]
        for start in range(0, len(new), 100):
            client.log_batch(self.id, params=new[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log the finite metrics of one step. MLflow's database rejects NaN and Inf."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        logged = [
            Metric(key, float(value), now, step) for key, value in values.items() if math.isfinite(value)
        ]
        _client(self.uri).log_batch(self.id, metrics=logged)

    def metrics_of_steps(self, rows: Sequence[tuple[int, float, Mapping[str, float]]]) -> None:
        """Log the finite metrics of many steps in few requests. A row: step, time (s since 1970), values."""
        from mlflow.entities import Metric

        logged = [
            Metric(key, float(value), int(at * 1000), step)
            for step, at, values in rows
            for key, value in values.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(logged), 1000):  # MLflow's limit
            _client(self.uri).log_batch(self.id, metrics=logged[start : start + 1000])

    def register_model(self, name: str, weights: Path, alias: str, note: str) -> int:
        """Upload weights as the next version of model `name`, point `alias` to it, return the version.

        `note`: description of the version, as Markdown.
        """
        from mlflow.exceptions import MlflowException

        client = _client(self.uri)
        try:
            client.create_registered_model(name, description=MODEL_NOTE)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        folder = f"model-{alias}"
        with upload_timeout():
            client.log_artifact(self.id, str(weights), folder)
        source = f"{client.get_run(self.id).info.artifact_uri}/{folder}"
        version = client.create_model_version(
            name, source, self.id, tags={"stage": alias}, description=note[:MAX_TAG_LENGTH]
        ).version
        client.set_registered_model_alias(name, alias, version)
        return int(version)

    def has_registered_model(self, name: str) -> bool:
        """Whether a version of registered model `name` was registered by this run."""
        return bool(
            _client(self.uri).search_model_versions(f"name='{name}' and run_id='{self.id}'", max_results=1)
        )

    def describe(self, note: Callable[[str], str], error: BaseException | None = None) -> None:
        """Replace the description (Markdown on top of the page) with `note(message)`; "" without an error."""
        message = str(error) or type(error).__name__ if error else ""
        with warn_on_error("a run's description"):
            self.tags({NOTE: note(message)[:MAX_TAG_LENGTH]})

    def text(self, text: str, name: str) -> None:
        """Store a text as an artifact of that name."""
        _client(self.uri).log_text(self.id, text, name)

    def tags(self, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            _client(self.uri).set_tag(self.id, key, value)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Store a file, or every file of a folder, as artifacts below `folder`."""
        client = _client(self.uri)
        with upload_timeout():
            (client.log_artifacts if path.is_dir() else client.log_artifact)(
                self.id, str(path), folder or None
            )

    def remove_artifacts(self, folder: str) -> None:
        """Delete a folder of artifacts, if the run has it."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = _client(self.uri).get_run(self.id).info.artifact_uri
        path = local_path(uri)
        if path is not None:  # MLflow decodes the path twice: it would miss a folder named a%20b
            shutil.rmtree(os.path.join(path, folder), ignore_errors=True)
            return
        store = get_artifact_repository(uri)
        if any(item.path == folder for item in store.list_artifacts()):
            store.delete_artifacts(folder)

    def dataset(self, corpus: Corpus, version: str, profile: Mapping[str, Any]) -> None:
        """Record the corpus version as the run's input dataset."""
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
        """End the run. `kind` is the type of the error that ended the work, None if it succeeded."""
        stopped = kind is not None and issubclass(kind, Stopped | KeyboardInterrupt)
        with warn_on_error("the end of a run"):
            _client(self.uri).set_terminated(
                self.id, "KILLED" if stopped else "FAILED" if kind else "FINISHED"
            )


def fail_fast() -> None:
    """Make MLflow's client in this process fail within seconds if a server does not answer. By default it
    tries for minutes."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault(REQUEST_TIMEOUT, "10")


@contextmanager
def upload_timeout() -> Iterator[None]:
    """Raise the request timeout for uploads of gigabytes."""
    before = os.environ.get(REQUEST_TIMEOUT)
    os.environ[REQUEST_TIMEOUT] = str(max(UPLOAD_TIMEOUT_S, int(before or 0)))
    try:
        yield
    finally:
        os.environ.pop(REQUEST_TIMEOUT)
        if before is not None:
            os.environ[REQUEST_TIMEOUT] = before


@contextmanager
def warn_on_error(what: str) -> Iterator[None]:
    """Turn an error of the tracker into a warning that `what` was not recorded: it must not stop the work."""
    try:
        yield
    except Exception as error:
        console.print_warning(f"MLflow did not record {what}: {console.first_line(error)}")


@contextmanager
def system_metrics(run: Run | None, interval_s: float) -> Iterator[None]:
    """Log CPU, memory, disk, network and GPU usage of this machine with MLflow's monitor; 0 logs none."""
    if not run or not interval_s:
        yield
        return
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = None
    with warn_on_error("system metrics"):
        monitor = SystemMetricsMonitor(
            run.id, sampling_interval=interval_s, resume_logging=True, tracking_uri=run.uri
        )
        monitor.start()
    try:
        yield
    finally:
        with warn_on_error("system metrics"):
            if monitor:
                monitor.finish()


def open_run(
    config: TrackingConfig, home: Path, name: str, description: str, *, parent: Run | None = None
) -> Run:
    """Continue the run that `home`/tracking.json names, else create one and name it there.

    `description`: of a new run, as Markdown. A run that is continued gets the name if one was chosen.
    Where no tracker is chosen, the one in tracking.json is used, from any current folder. A run without
    `parent` is put below `config.parent`, if that is set. Raises UserError if the tracking store cannot be
    reached.
    """
    note = home / "tracking.json"
    uri = parent.uri if parent else _noted_uri(config, note) or config.resolved_uri()
    try:
        client, known = _client(uri), _read_note(note)
        if _same_store(known.get("uri"), uri) and _exists(client, str(known.get("run_id"))):
            client.update_run(known["run_id"], status="RUNNING", name=name if config.name else None)
            if config.parent and parent is None:
                client.set_tag(known["run_id"], "mlflow.parentRunId", config.parent)
            return Run(uri, known["run_id"])
        tags = {"mlflow.runName": name, NOTE: description[:MAX_TAG_LENGTH], **environment_tags()}
        if above := parent.id if parent else config.parent:
            tags["mlflow.parentRunId"] = above
        run = Run(uri, client.create_run(experiment_id(config), tags=tags).info.run_id)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the MLflow store does not answer: {console.first_line(error)}",
            where=uri,
            hint="start it or set tracking.uri",
        ) from error
    home.mkdir(parents=True, exist_ok=True)
    unfinished = note.with_suffix(".part")
    unfinished.write_text(json.dumps({"uri": uri, "run_id": run.id}) + "\n")
    os.replace(unfinished, note)
    return run


def _noted_uri(config: TrackingConfig, note: Path) -> str:
    """The tracker that a note names, unless another one is chosen or its database is gone; else empty."""
    uri = str(_read_note(note).get("uri") or "")
    database = sqlite_path(uri) if uri else None
    return "" if config.is_chosen or (database and not database.is_file()) else uri


def _same_store(noted: object, uri: str) -> bool:
    """Whether a note names this store. Notes until 0.5 may name SQLite files by relative paths."""
    return noted == uri or (isinstance(noted, str) and absolute_sqlite_uri(noted) == uri)


def training_runs_on(config: TrackingConfig, corpus_root: Path) -> list[dict[str, str]]:
    """Training runs of the experiment whose input dataset is this corpus, oldest first.

    Keys: `name`, `stage`, `started` (UTC), `corpus_version` that was trained on, `run_id`.
    """
    uri = config.resolved_uri()
    if (database := sqlite_path(uri)) and not database.is_file():
        return []  # nothing was ever recorded: no database is created to find that out
    client = _client(uri)
    rows, token = [], None
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
                rows.append(row | {"run_id": run.info.run_id})
        token = page.token
        if not token:
            return rows


def _source_uri(source: str) -> str:
    try:
        return str(json.loads(source)["uri"])
    except (ValueError, KeyError, TypeError):
        return ""  # a dataset of another program


def experiment_id(config: TrackingConfig) -> str:
    """Id of the configured experiment, created if missing."""
    from mlflow.exceptions import MlflowException

    uri = config.resolved_uri()
    client = _client(uri)
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment:
        return str(experiment.experiment_id)
    # without this tag MLflow's page shows the runs as evaluations of a language model
    tags = {"mlflow.experimentKind": "custom_model_development"}
    try:
        return str(client.create_experiment(config.experiment, config.artifacts_uri(), tags=tags))
    except MlflowException:  # another process created it meanwhile
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names, as `--set` writes them."""
    result: dict[str, Any] = {}
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result |= flatten(value, f"{name}.")
        else:
            result[name] = value
    return result


def _client(uri: str) -> MlflowClient:
    import logging

    from mlflow.tracking import MlflowClient

    # after the import, which sets its own levels; messages about a new database are noise
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if database := sqlite_path(uri):
        create_database(database)
    return MlflowClient(uri)


def create_database(path: Path) -> None:
    """Create MLflow's SQLite database if there is none: under another name, which is changed once it is
    complete.

    A process that is killed meanwhile leaves no broken database, and of several processes one creates it.
    """
    if path.exists():
        return
    from filelock import FileLock
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock")):
        if path.exists():
            return
        unfinished = path.with_name(f".{path.name}.part")
        for leftover in path.parent.glob(f"{unfinished.name}*"):  # of a killed process, its journal included
            leftover.unlink()
        store = SqlAlchemyStore(sqlite_uri(unfinished), (path.parent / "artifacts").as_uri())
        store.engine.dispose()
        os.replace(unfinished, path)


def _read_note(note: Path) -> dict[str, Any]:
    """Content of a `tracking.json`; {} if it is missing or damaged."""
    try:
        content = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _exists(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has the run, not deleted. Raises MlflowException if the store does not answer."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
