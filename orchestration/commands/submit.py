"""`uniavgen submit`: run a command as a Ray job on a cluster and show its output here.

The cluster's nodes need uniavgen and must see the paths that the command names.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uniavgen.orchestration.commands.common import command

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from uniavgen.orchestration.config import Config

FORWARDED_VARIABLES = ("MLFLOW_TRACKING_URI",)
"""Environment variables that the job gets. No secrets: a cluster shows a job's variables to everyone."""


@command
def submit(
    settings: Config,
    command: Annotated[
        list[str],
        typer.Argument(help="A uniavgen command with its options, behind `--`.", metavar="COMMAND"),
    ],
    address: Annotated[
        str,
        typer.Option(
            "--address",
            help="Ray's dashboard; default: $RAY_API_SERVER_ADDRESS, $RAY_ADDRESS.",
            metavar="URL",
        ),
    ] = "",
    follow: Annotated[bool, typer.Option(help="Show the job's output until it ends.")] = True,
) -> dict[str, Any]:
    """Run a command as a Ray job on a cluster.

    The nodes of the cluster need uniavgen and must see the paths that the command names.

    Example: uniavgen submit -- ingest s3://bucket/raw --corpus /data/corpus
    """
    return submit_job(command, address, follow=follow)


def submit_job(command: Sequence[str], address: str = "", *, follow: bool = True) -> dict[str, Any]:
    """Start the command as a job and, with `follow`, show its output until it ends.

    `address`: Ray's dashboard, http://HEAD:8265; "": that of RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else this
    machine's. Raises UsageError for an unknown command, UserError if no cluster accepts the job or the job
    fails, and Stopped if the user stops following.
    """
    from rich.markup import escape

    from uniavgen.orchestration.cli import COMMANDS, nearest
    from uniavgen.orchestration.output import console
    from uniavgen.shards.errors import UsageError, UserError

    if command[0] not in COMMANDS:
        raise UsageError(
            f"no such command: {command[0]}{nearest(command[0])}",
            where="submit",
            hint=f"commands: {', '.join(COMMANDS)}",
        )
    client = _connect(address)
    variables = {name: os.environ[name] for name in FORWARDED_VARIABLES if name in os.environ}
    try:
        job = client.submit_job(
            entrypoint=shlex.join(["uniavgen", *command]), runtime_env={"env_vars": variables}
        )
    except RuntimeError as error:  # Ray rejected the job
        raise UserError(
            f"the cluster does not accept the job: {' '.join(str(error).split())[: console.MAX_REASON]}",
            where=client.get_address(),
            hint="a cluster that was just started accepts jobs a moment later: try again",
            kind="no-cluster",
        ) from error
    console.console.print(
        f"job [bold]{job}[/] on {client.get_address()}: uniavgen {escape(shlex.join(command))}"
    )
    summary = {"command": "submit", "job": job, "address": client.get_address(), "status": "SUBMITTED"}
    return summary | {"status": _follow(client, job)} if follow else summary


def _connect(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    from uniavgen.orchestration.output.console import first_line
    from uniavgen.shards.errors import UserError

    try:
        return JobSubmissionClient(address or None)
    except Exception as error:  # its type depends on what is wrong with the address
        default = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
        raise UserError(
            f"no cluster accepts jobs: {first_line(error)}",
            where=address or default or "http://127.0.0.1:8265",
            hint="start one (ray start --head) and name its dashboard: --address http://HEAD:8265",
            kind="no-cluster",
        ) from error


def _follow(client: JobSubmissionClient, job: str) -> str:
    """Show the job's output until it ends, and return its status. Raises UserError if it failed."""
    from ray.job_submission import JobStatus

    from uniavgen.orchestration.output import console
    from uniavgen.shards.errors import Stopped, Terminated, UserError

    async def show_output() -> None:
        async for text in client.tail_job_logs(job):
            console.console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

    try:
        asyncio.run(show_output())
    except KeyboardInterrupt as error:
        text = f"job {job} continues; to see it: ray job logs --follow {job}; to stop it: ray job stop {job}"
        raise Stopped(text, code=error.code if isinstance(error, Terminated) else 130) from None
    info = client.get_job_info(job)
    if info.status != JobStatus.SUCCEEDED:
        message = (info.message or "").strip().splitlines() or ["no message"]
        raise UserError(
            f"job {job} ended as {info.status}: {message[0][: console.MAX_REASON]}",
            where=client.get_address(),
            kind="job-failed",
        )
    return str(info.status)
