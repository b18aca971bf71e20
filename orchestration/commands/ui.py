"""`uniavgen ui`: MLflow's web page on loopback, on the runs that were recorded here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
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


END_TIMEOUT_S = 10
"""Seconds until the server's processes must have ended after SIGTERM."""


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
    from uniavgen.shards.errors import Terminated, UserError
    from uniavgen.shards.uris import sqlite_path

    uri = tracking.resolved_uri()
    if (database := sqlite_path(uri)) and not database.is_file():
        raise UserError("no runs are recorded here", where=uri, hint="run uniavgen demo, or name --folder")
    _check_port(port)
    page = f"http://127.0.0.1:{port}/#/experiments/{experiment_id(tracking)}/runs"
    console.console.print(f"MLflow: open [bold]{page}[/] (Ctrl-C ends it); the runs are in {uri}")
    # -P, PYTHONSAFEPATH and --app-dir: neither the server nor its workers import from the current folder
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ, "PYTHONSAFEPATH": "1"}
    server = subprocess.Popen(
        [sys.executable, "-P", *server_arguments(uri, port)], env=environment, start_new_session=True
    )
    try:
        code = server.wait()
    except Terminated:
        raise
    except KeyboardInterrupt:  # Ctrl-C is the way to end it
        code = 0
    finally:
        end_session(server)
    if code:
        raise UserError(
            f"the MLflow server ended with exit code {code}", where=uri, hint="read its messages above"
        )
    return {"uri": uri, "port": port}


def end_session(leader: subprocess.Popen[bytes]) -> None:
    """End `leader` and the processes of its session, with SIGKILL if SIGTERM is not enough."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(leader.pid, number)
        except ProcessLookupError:  # all have ended
            break
        deadline = time.monotonic() + END_TIMEOUT_S
        while time.monotonic() < deadline and group_exists(leader.pid):
            leader.poll()
            time.sleep(0.05)
    leader.wait()


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


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
