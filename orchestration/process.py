"""The process of a command: environment of its children, a writable HOME, and what signals do.

SIGTERM and SIGHUP end a command in order: one line on stderr, child processes ended, exit code 128 + N.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType

from uniavgen.shards.errors import Terminated

HANDLED = (signal.SIGTERM, signal.SIGHUP)


def prepare_environment() -> None:
    """Set the variables that this process and its children need."""
    # Ray and DeepSpeed start helpers (ninja, workers) from this environment's bin
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    os.environ.setdefault("PYTHONSAFEPATH", "1")  # no child imports from the current folder
    use_writable_home()


def use_writable_home() -> None:
    """Replace a HOME that cannot be written, as batch systems and containers have it, by a temporary folder.

    Many libraries write caches there. Weights that are readable in the old one are still used.
    """
    home = Path(os.path.expanduser("~"))
    if home.is_dir() and os.access(home, os.W_OK | os.X_OK):
        return
    folder = Path(tempfile.gettempdir()) / f"uniavgen-home-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        return  # of another user: the command will say what it cannot write
    weights = home / ".cache" / "uniavgen"
    if "XDG_CACHE_HOME" not in os.environ and os.access(weights, os.R_OK):
        os.environ.setdefault("UNIAVGEN_CACHE", str(weights))
    os.environ["HOME"] = str(folder)
    print(f"warning: HOME={home} cannot be written; caches are in {folder}", file=sys.stderr)


def exit_at_signals() -> None:
    """Before the command begins: a signal prints a line and exits. nohup's ignored SIGHUP stays ignored."""
    for number in HANDLED:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def raise_at_signals() -> None:
    """While the command runs: the first signal raises Terminated, a second one ends the process at once."""
    for number in HANDLED:
        if signal.getsignal(number) is _exit:
            signal.signal(number, _raise)


def _exit(number: int, frame: FrameType | None) -> None:
    print("stopped before the command began", file=sys.stderr)
    sys.exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Terminated(number)
