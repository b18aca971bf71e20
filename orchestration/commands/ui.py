"""`uniavgen ui`: MLflow's web page on loopback, on the runs that were recorded here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import (
    ConfigOption,
    JsonOption,
    PresetOption,
    SetOption,
    run_command,
)

if TYPE_CHECKING:
    from uniavgen.orchestration.config import Config
    from uniavgen.orchestration.tracking.config import TrackingConfig


def ui(
    folder: Annotated[
        Path | None,
        typer.Option("--folder", help="Folder of mlflow.db; default: tracking.folder.", metavar="DIR"),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Port on 127.0.0.1.", metavar="N")] = 5000,
    config: ConfigOption = None,
    set_: SetOption = None,
    json_: JsonOption = False,
    preset: PresetOption = "tiny",
) -> None:
    """Open MLflow on the runs recorded here; Ctrl-C ends it.

    The server listens on 127.0.0.1 only.

    Example: uniavgen ui --folder demo-output/mlflow
    """

    def body(settings: Config) -> dict[str, Any]:
        return serve_mlflow(settings.tracking, port)

    assignments = [f"tracking.folder={folder}"] if folder else []
    run_command(body, preset, config, [*assignments, *(set_ or [])], json_)


def serve_mlflow(tracking: TrackingConfig, port: int) -> dict[str, Any]:
    """Run MLflow's server until it is stopped. Raises UserError without runs, or if the port is in use."""
    from uniavgen.orchestration.output import console
    from uniavgen.orchestration.tracking.mlflow_runs import experiment_id
    from uniavgen.shards.errors import UserError

    uri = tracking.resolved_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError("no runs are recorded here", where=uri, hint="run uniavgen demo, or name --folder")
    _check_port(port)
    page = f"http://127.0.0.1:{port}/#/experiments/{experiment_id(tracking)}/runs"
    console.console.print(f"MLflow: open [bold]{page}[/] (Ctrl-C ends it); the runs are in {uri}")
    try:
        # -P, PYTHONSAFEPATH and --app-dir: neither the server nor its workers import from the current folder
        code = subprocess.run(
            [sys.executable, "-P", *server_arguments(uri, port)], env=os.environ | {"PYTHONSAFEPATH": "1"}
        ).returncode
    except KeyboardInterrupt:
        code = 0
    if code not in (0, -2, 130):
        raise UserError(
            f"the MLflow server ended with exit code {code}", where=uri, hint="read its messages above"
        )
    return {"uri": uri, "port": port}


def server_arguments(uri: str, port: int) -> list[str]:
    """Python arguments that start MLflow's server with one worker."""
    return [
        *("-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port)),
        *("--workers", "1", "--uvicorn-opts", f"--app-dir '{sysconfig.get_path('purelib')}'"),
    ]


def _check_port(port: int) -> None:
    from uniavgen.shards.errors import UserError

    with socket.socket() as probe:
        # a listener that just ended leaves connections in TIME_WAIT, which do not block the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} is in use", where="127.0.0.1", hint="choose another: --port N"
            ) from error
