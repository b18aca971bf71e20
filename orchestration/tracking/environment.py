"""Tags that say which code and machine made a run."""

from __future__ import annotations

import getpass
import os
import platform
import subprocess
from pathlib import Path

from uniavgen import __version__

PACKAGES = ("torch", "deepspeed", "ray", "mlflow")
"""Packages whose versions are recorded, beside those of Python and of uniavgen."""


def environment_tags() -> dict[str, str]:
    """Tags of a new run. The names that begin with `mlflow.` fill MLflow's columns User and Source."""
    from importlib.metadata import version

    return {
        "mlflow.user": _user_name(),
        "mlflow.source.name": "uniavgen",
        "mlflow.source.type": "LOCAL",
        "code_version": code_version(),
        "environment.host": platform.node(),
        "environment.python": platform.python_version(),
        **{f"environment.{package}": version(package) for package in PACKAGES},
    }


def code_version() -> str:
    """The release and, in a git checkout, the commit: `0.5.0+1a2b3c4-dirty`."""
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True
        )
    except OSError:  # git is not installed
        return __version__
    return f"{__version__}+{done.stdout.strip()}" if done.returncode == 0 else __version__


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user id without a name
        return str(os.getuid())
