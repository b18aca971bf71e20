"""Ray, as every floor starts it: one place that says which cluster is used and what its workers find in their environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def ray_running() -> Iterator[None]:
    """A Ray to run on: the one that runs in this process, the cluster that RAY_ADDRESS names, else a new local one.

    A local one is always new, since the remains of a killed run must not be joined; what is started here is stopped at the
    end.
    """
    os.environ.setdefault(
        "RAY_BACKEND_LOG_LEVEL", "fatal"
    )  # it prints its own worries to the console otherwise
    import ray

    if ray.is_initialized():
        yield
        return
    environment = {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYANNOTE_METRICS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PATH": os.environ.get("PATH", ""),
    }
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": environment},
    }
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**options)
    else:
        # two at least: the shares of ingest's stages, and the two training workers of the defaults, add up to that
        ray.init(address="local", num_cpus=max(2, os.cpu_count() or 1), include_dashboard=False, **options)
    _keep_off_stdout()
    try:
        yield
    finally:
        ray.shutdown()


def _keep_off_stdout() -> None:
    """Ray prints that a worker died to standard output, where a command's --json answer goes; its log files have it too."""
    import ray._private.worker as driver

    driver.print_to_stdstream = lambda data, ignore_prefix: logging.getLogger("ray").debug(
        " ".join(data["lines"])
    )
