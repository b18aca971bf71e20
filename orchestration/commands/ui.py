"""MLflow's own web page, on loopback, on the runs that were recorded here."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from uniavgen.orchestration import console
from uniavgen.orchestration.tracking.mlflow_runs import TrackingConfig, experiment_id
from uniavgen.shards.errors import UserError


def serve(tracking: TrackingConfig, port: int) -> dict[str, Any]:
    """Run the MLflow server until it is stopped. Raises UserError without runs or with the port taken."""
    uri = tracking.resolved_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError(
            "no runs are recorded here", where=uri, hint="run `uniavgen demo` first, or name --folder"
        )
    with socket.socket() as probe:
        # a listener that just ended leaves connections in TIME_WAIT, which do not hold the port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"port {port} is taken", where="127.0.0.1", hint="choose another: --port N"
            ) from error
    page = f"http://127.0.0.1:{port}/#/experiments/{experiment_id(tracking)}/runs"
    console.console.print(f"MLflow: open [bold]{page}[/] (Ctrl-C ends it); the runs are in {uri}")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    try:
        code = subprocess.run([*command, "--workers", "1"]).returncode
    except KeyboardInterrupt:
        code = 0
    if code not in (0, -2, 130):
        raise UserError(f"the MLflow server ended with {code}", where=uri, hint="read its messages above")
    return {"uri": uri, "port": port}
