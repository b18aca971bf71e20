"""Start Ray or join it, with one environment for all workers, and run a function over many items."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from uniavgen.shards.errors import UserError

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYANNOTE_METRICS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONSAFEPATH": "1",
}
"""Variables of every Ray worker, beside PATH. PYTHONSAFEPATH keeps the current folder out of `sys.path`."""

CURRENT_FOLDER = "UNIAVGEN_CURRENT_FOLDER"
"""Variable that tells the workers of a local Ray in which folder the command was started."""


@contextmanager
def ray_running() -> Iterator[None]:
    """Provide Ray: the one of this process, else the cluster that RAY_ADDRESS names, else a new local one.

    A local one is always new, because what a killed run left behind must not be joined. What is started
    here is stopped at the end.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else Ray's own warnings go to the console
    import ray

    if ray.is_initialized():
        yield
        return
    environment = {**WORKER_ENVIRONMENT, "PATH": os.environ.get("PATH", "")}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if os.environ.get("RAY_ADDRESS"):
        options["runtime_env"] = {"env_vars": environment}
    else:
        # at least 2 CPUs: what ingest's pools and the two training workers of the defaults reserve together
        options |= {"address": "local", "num_cpus": max(2, os.cpu_count() or 1), "include_dashboard": False}
        options["runtime_env"] = {
            "env_vars": environment | {CURRENT_FOLDER: os.getcwd()},
            "worker_process_setup_hook": "uniavgen.shards.cluster.enter_current_folder",
        }
    with _empty_folder() as start_folder:
        # Ray puts the folder in which the driver calls init first on its workers' sys.path
        # (`py_driver_sys_path` in ray/_private/worker.py): a user's own train.py would be imported there
        with contextlib.chdir(start_folder):
            ray.init(**options)
        _keep_off_stdout()
        try:
            yield
        finally:
            ray.shutdown()


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
