"""`uniavgen submit`: the same command as a Ray job on a cluster, its output shown here while it runs.

In: a command line without `uniavgen`, and where the cluster takes jobs. Out: the job's id and how it ended. The cluster's
nodes have uniavgen installed and see the paths that the command names; Ray tells the command which cluster it is on.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from uniavgen.orchestration import console
from uniavgen.shards.errors import Stopped, UsageError, UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

CARRIED = ("MLFLOW_TRACKING_URI",)
"""Variables of this environment that the job gets too. Secrets are none of them: a cluster shows a job's variables."""


def submit(
    command: Sequence[str], known: Sequence[str], address: str = "", *, follow: bool = True
) -> dict[str, Any]:
    """Start the command as a job and, with `follow`, show its output to its end.

    `known`: names of the commands that may be submitted. `address`: Ray's dashboard, http://HEAD:8265; "": what
    RAY_API_SERVER_ADDRESS or RAY_ADDRESS names, else this machine's. Raises UsageError for an unknown command, UserError where
    no cluster takes the job or the job fails, and Stopped where the user looks away before its end.
    """
    if command[0] not in known:
        near = difflib.get_close_matches(command[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}"
        raise UsageError(f"unknown command {command[0]!r}", where="submit", hint=hint)
    client = _client(address)
    carried = {name: os.environ[name] for name in CARRIED if name in os.environ}
    try:
        job = client.submit_job(
            entrypoint=shlex.join(["uniavgen", *command]), runtime_env={"env_vars": carried}
        )
    except RuntimeError as error:  # Ray's answer to a job that it does not take
        reason, hint = (
            " ".join(str(error).split())[:200],
            "a cluster that just started takes jobs a moment later: try again",
        )
        raise UserError(
            f"the cluster does not take the job: {reason}",
            where=client.get_address(),
            hint=hint,
            kind="no-cluster",
        ) from error
    console.console.print(
        f"job [bold]{job}[/] on {client.get_address()}: uniavgen {escape(shlex.join(command))}"
    )
    summary = {"command": "submit", "job": job, "address": client.get_address(), "status": "SUBMITTED"}
    return summary | {"status": _followed(client, job)} if follow else summary


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address or None)
    except Exception as error:  # of several libraries, by what is wrong with the address
        named = (
            address
            or os.environ.get("RAY_API_SERVER_ADDRESS")
            or os.environ.get("RAY_ADDRESS")
            or "http://127.0.0.1:8265"
        )
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        hint = "start one (ray start --head) and name its dashboard: --address http://HEAD:8265"
        raise UserError(
            f"no cluster takes jobs: {reason}", where=named, hint=hint, kind="no-cluster"
        ) from error


def _followed(client: JobSubmissionClient, job: str) -> str:
    """Show the job's output until it ends; its last status. Raises UserError where it failed."""
    from ray.job_submission import JobStatus

    async def show() -> None:
        async for text in client.tail_job_logs(job):
            console.console.print(text, end="", markup=False, highlight=False, soft_wrap=True)

    try:
        asyncio.run(show())
    except KeyboardInterrupt:
        told = f"job {job} goes on; ray job logs --follow {job} shows it, ray job stop {job} ends it"
        raise Stopped(told, code=130) from None
    info = client.get_job_info(job)
    if info.status != JobStatus.SUCCEEDED:
        reason = (info.message or "").strip().splitlines() or ["no message"]
        raise UserError(
            f"job {job} ended as {info.status}: {reason[0][:200]}",
            where=client.get_address(),
            kind="job-failed",
        )
    return str(info.status)
