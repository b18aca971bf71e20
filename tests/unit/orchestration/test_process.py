"""The process of a command: signals, and a HOME that cannot be written."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SLEEPER = """
import signal, sys, time
import typer
from uniavgen.orchestration.commands.common import run_command
from uniavgen.orchestration.process import exit_at_signals

def body(settings):
    print("running", flush=True)
    time.sleep(60)

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
exit_at_signals()
if sys.argv[1:]:
    print("starting", flush=True)
    time.sleep(60)
sys.argv[1:] = []
typer.run(lambda: run_command(body, "tiny", None, None, False))
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["wait"], "stopped before the command began"), ([], "stopped; committed work is kept")],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_a_command_with_one_line(arguments: list[str], message: str, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert errors.startswith(message)
    assert errors.count("\n") == 1


def test_home_that_cannot_be_written_is_replaced(tmp_path: Path) -> None:
    program = (
        "import os; from uniavgen.orchestration.process import use_writable_home; "
        "use_writable_home(); print(os.environ['HOME'])"
    )
    environment = {**os.environ, "HOME": "/proc/nohome", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    home = Path(done.stdout.strip())
    assert home.parent == tmp_path
    assert os.access(home, os.W_OK)
    assert done.stderr == f"warning: HOME=/proc/nohome cannot be written; caches are in {home}\n"


def test_end_session_ends_every_process_of_the_session() -> None:
    from uniavgen.orchestration.commands.ui import end_session, group_exists

    leader = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, time; subprocess.Popen(['sleep', '60']); time.sleep(60)"],
        start_new_session=True,
    )
    time.sleep(1)
    end_session(leader)
    assert not group_exists(leader.pid)
