"""Start Ray or join it, with one environment for all workers, and run a function over many items."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from uniavgen.shards.errors import UserError

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYANNOTE_METRICS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONSAFEPATH": "1",
}
"""Variables of every Ray worker, beside PATH. PYTHONSAFEPATH keeps the current folder out of `sys.path`."""

CONNECT_TIMEOUT_S = 10.0
"""Seconds until a cluster must answer. Ray itself tries for minutes, and prints a line every second."""

MAX_TEMP_LENGTH = 35
"""Characters of Ray's temporary folder. Its sockets are 72 characters longer; the system allows 107."""

MIN_TEMP_BYTES = 64 * 2**20
"""Free space that Ray needs for its logs and sockets. Heuristic."""

SHORT_TEMP = "/tmp"
"""Parent of Ray's temporary folder if TMPDIR is too long."""

CURRENT_FOLDER = "UNIAVGEN_CURRENT_FOLDER"
"""Variable that tells the workers of a local Ray in which folder the command was started."""


@contextmanager
def ray_running() -> Iterator[None]:
    """Provide Ray: the one of this process, else the cluster that RAY_ADDRESS names, else a new local one.

    A local one is always new, because what a killed run left behind must not be joined. What is started
    here is stopped at the end. Raises UserError if the named cluster does not answer, or no folder is
    short enough for Ray's sockets.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else Ray's own warnings go to the console
    address = os.environ.get("RAY_ADDRESS")
    if address and "ray" not in sys.modules:
        check_cluster(address)  # before the import, which takes seconds
    import ray

    if ray.is_initialized():
        yield
        return
    environment = {**WORKER_ENVIRONMENT, "PATH": os.environ.get("PATH", "")}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address:
        options["runtime_env"] = {"env_vars": environment}
    else:
        folder = short_temp_folder()
        if folder:
            options["_temp_dir"] = folder
        check_temp_space(folder or _temp_folder())
        # a small /dev/shm, as in containers: Ray then keeps its objects in the temporary folder, and would
        # refuse to on machines with much memory; the rows of ingest are small
        os.environ.setdefault("RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE", "1")
        # Ray would start a worker for each CPU without the variables below, which none of our tasks can use
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        # at least 2 CPUs: what ingest's pools and the two training workers of the defaults reserve together
        options |= {"address": "local", "num_cpus": max(2, os.cpu_count() or 1), "include_dashboard": False}
        options["runtime_env"] = {
            "env_vars": environment | {CURRENT_FOLDER: os.getcwd()},
            "worker_process_setup_hook": "uniavgen.shards.cluster.enter_current_folder",
        }
    with _empty_folder() as start_folder:
        # Ray puts the folder in which the driver calls init first on its workers' sys.path
        # (`py_driver_sys_path` in ray/_private/worker.py): a user's own train.py would be imported there
        with contextlib.chdir(start_folder), _own_sigterm(), _without_cluster_services():
            ray.init(**options)
        _keep_off_stdout()
        try:
            yield
        finally:
            ray.shutdown()


def check_cluster(address: str) -> None:
    """Raise UserError if no Ray answers at `address` (a value of RAY_ADDRESS) within CONNECT_TIMEOUT_S."""
    if address in ("auto", "local"):
        return
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise UserError("RAY_ADDRESS is not HOST:PORT", where=address, hint="for example 10.0.0.5:6379")
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while reason := _why_silent(host, port, deadline - time.monotonic()):
        if time.monotonic() >= deadline:
            raise UserError(
                f"no Ray cluster answers: {reason}",
                where=f"RAY_ADDRESS={address}",
                hint="start it (ray start --head), correct RAY_ADDRESS, or unset it to use this machine",
                kind="no-cluster",
            )
        time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))


def _why_silent(host: str, port: int, timeout: float) -> str:
    """Why no gRPC server, as Ray's, answers at a port; "" if one does."""
    # the preface of HTTP/2 and an empty SETTINGS frame; a gRPC server answers with its own SETTINGS (type 4)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    try:
        with socket.create_connection((host, port), timeout=max(timeout, 0.1)) as connection:
            if os.environ.get("RAY_USE_TLS") == "1":
                return ""
            connection.sendall(preface)
            answer = connection.recv(9)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return "" if len(answer) > 3 and answer[3] == 4 else "another program listens there"


def check_temp_space(folder: str) -> None:
    """Raise UserError if Ray cannot write its files below `folder`; Ray itself times out without a reason."""
    existing = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if not os.access(existing, os.W_OK | os.X_OK):
        problem = "cannot be written"
    elif free < MIN_TEMP_BYTES:
        problem = f"has {free // 2**20} MiB free, {MIN_TEMP_BYTES // 2**20} are needed"
    else:
        return
    raise UserError(
        f"the folder for temporary files {problem}",
        where=folder,
        hint="free space there, or set TMPDIR to another folder",
        kind="no-temp-space",
    )


def _temp_folder() -> str:
    return os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or SHORT_TEMP


def short_temp_folder() -> str | None:
    """A folder for Ray's files if that of TMPDIR is too long for its sockets; None if it is short enough.

    Raises UserError if RAY_TMPDIR is too long, or no short folder can be written.
    """
    configured = _temp_folder()
    if len(configured) + len("/ray") <= MAX_TEMP_LENGTH:
        return None
    folder = Path(SHORT_TEMP) / f"ray-{os.getuid()}"
    try:
        if os.environ.get("RAY_TMPDIR"):
            raise OSError("RAY_TMPDIR itself is too long")
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != os.getuid() or not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} belongs to someone else")
    except OSError as error:
        raise UserError(
            f"the folder for temporary files has {len(configured)} characters, too many for Ray's sockets",
            where=configured,
            hint=f"set RAY_TMPDIR to a folder of at most {MAX_TEMP_LENGTH - 4} characters",
            kind="long-tmpdir",
        ) from error
    return str(folder)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM.

    Ray replaces it twice: its import by one that prints a C++ stack, `ray.init` by one that exits with 15.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    import ray._private.utils as utils

    def keep_ours(rays: object = None) -> None:
        signal.signal(signal.SIGTERM, handler)

    set_handler, utils.set_sigterm_handler = utils.set_sigterm_handler, keep_ours
    keep_ours()
    try:
        yield
    finally:
        utils.set_sigterm_handler = set_handler
        keep_ours()


CLUSTER_SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
"""What a new local Ray starts for clusters: the autoscaler, the forwarding of logs to drivers, and the server
of the dashboard, which without the dashboard reports usage statistics only."""


@contextmanager
def _without_cluster_services() -> Iterator[None]:
    """Start a local Ray without `CLUSTER_SERVICES`: three processes, 2.6 CPU seconds at every start.

    Joining a cluster starts none of them.
    """
    from ray._private.node import Node

    methods = {name: getattr(Node, name) for name in CLUSTER_SERVICES}
    for name in methods:
        setattr(Node, name, lambda node, **options: None)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)


def enter_current_folder() -> None:
    """Go to the driver's folder in each new worker of a local Ray, so that relative paths stay valid."""
    with contextlib.suppress(OSError, KeyError):
        os.chdir(os.environ[CURRENT_FOLDER])


@contextmanager
def _empty_folder() -> Iterator[str]:
    """A new empty folder, and PYTHONSAFEPATH for the Python processes that Ray starts."""
    folder = tempfile.mkdtemp(prefix="uniavgen-ray-")
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep_off_stdout() -> None:
    """Send Ray's report of a dead worker to its log: standard output is for a command's --json answer."""
    import ray._private.worker as driver

    driver.print_to_stdstream = lambda data, ignore_prefix: logging.getLogger("ray").debug(
        " ".join(data["lines"])
    )


Item = TypeVar("Item")
Result = TypeVar("Result")

START_RAY_BYTES = 256e6
"""Starting Ray takes about as long as reading or writing this many bytes."""


def worth_ray(items: int, total_bytes: float) -> bool:
    """True if Ray tasks save time: several items, and Ray is running or the work outweighs starting it."""
    if items <= 1:
        return False
    import ray

    return ray.is_initialized() or total_bytes >= START_RAY_BYTES


def map_unordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, on_ray: bool
) -> Iterator[Result]:
    """Yield `function(item)` of every item as results become ready, in this process or as Ray tasks.

    Items are taken from the iterator only shortly before they start. A UserError or OSError of a task is
    raised unchanged, and tasks that have not started are cancelled.
    """
    if not on_ray:
        yield from map(function, items)
        return
    import ray

    with ray_running():
        task = ray.remote(num_cpus=1)(function)
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting, pending = iter(items), list[Any]()
        try:
            while True:
                pending += [task.remote(item) for item in islice(waiting, limit - len(pending))]
                if not pending:
                    return
                ready, pending = ray.wait(pending)
                yield from ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError | OSError) else error) from error
        finally:
            for reference in pending:
                ray.cancel(reference)
