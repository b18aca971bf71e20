"""Steps of a plan: which run, why, and that a plan that is killed at any moment continues."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_plans
from tiny_plans import run_tiny, tiny_job, tiny_steps, with_code

from uniavgen.orchestration.plan_runs.decide import decide_all, select
from uniavgen.orchestration.plan_runs.state import PlanState
from uniavgen.orchestration.status.plan_status import plan_status
from uniavgen.shards.errors import UsageError, UserError

NAMES = ["ingest", "curate", "shard"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sources").mkdir()
    for name in "abc":
        (tmp_path / "sources" / name).write_text(name * 5)
    return tmp_path


def actions(folder: Path, **settings: object) -> list[str]:
    return [result["action"] for result in run_tiny(folder, **settings).values()]


def log(folder: Path) -> list[str]:
    return (folder / "log.txt").read_text().split("\n")[:-1]


def reasons(folder: Path, **settings: object) -> dict[str, tuple[str, str]]:
    """What a dry run says: action and reason by step."""
    job = tiny_job(folder, **settings)
    decisions = decide_all(tiny_steps(), job, PlanState(job.plan.state_folder))
    return {decision.step: (decision.action, decision.reason) for decision in decisions}


def test_second_run_skips_every_step_and_returns_the_summaries_of_the_first(folder: Path) -> None:
    first = run_tiny(folder)
    second = run_tiny(folder)
    assert [result["action"] for result in first.values()] == ["done"] * 3
    assert [result["action"] for result in second.values()] == ["skipped"] * 3
    assert {name: result["summary"] for name, result in first.items()} == {
        name: result["summary"] for name, result in second.items()
    }
    assert log(folder) == ["copy a", "copy b", "copy c", "join", "count"]


@pytest.mark.parametrize(
    ("change", "expected", "first_reason"),
    [
        (lambda folder: (folder / "sources" / "d").write_text("d"), ["done"] * 3, "other input: d none -> "),
        (lambda folder: (folder / "sources" / "a").touch(), ["skipped"] * 3, "unchanged since"),
        (lambda folder: (folder / "joined.txt").unlink(), ["skipped", "done", "skipped"], "unchanged since"),
        (
            lambda folder: (folder / "joined.txt").write_text("other"),
            ["skipped", "done", "skipped"],
            "unchanged",
        ),
        (lambda folder: (folder / "count.txt").unlink(), ["skipped", "skipped", "done"], "unchanged"),
        (
            lambda folder: (folder / "plan" / "steps" / "ingest.json").write_text("{"),
            ["done", "skipped", "skipped"],
            "its record is missing",
        ),
    ],
    ids=["new source", "same content", "output gone", "output replaced", "last output gone", "bad record"],
)
def test_a_change_runs_the_steps_that_depend_on_it_alone(
    folder: Path, change: Callable[[Path], object], expected: list[str], first_reason: str
) -> None:
    run_tiny(folder)
    change(folder)
    assert reasons(folder)["ingest"][1].startswith(first_reason)
    assert actions(folder) == expected
    assert (folder / "count.txt").read_text() == f"{len((folder / 'joined.txt').read_text())}\n"
    assert actions(folder) == ["skipped"] * 3


def test_a_changed_setting_runs_its_step_and_is_named(folder: Path) -> None:
    run_tiny(folder)
    assert reasons(folder, policy="fine-tune") == {
        "ingest": ("skip", reasons(folder)["ingest"][1]),
        "curate": ("run", "other settings: curate.policy default -> fine-tune"),
        "shard": ("maybe", "if curate changes its input"),
    }
    # the joined file is the same under both settings
    assert actions(folder, policy="fine-tune") == ["skipped", "done", "skipped"]


def test_changed_code_runs_the_steps_again(folder: Path) -> None:
    run_tiny(folder)
    job = tiny_job(folder)
    decisions = decide_all(with_code(tiny_steps(), "shards.text"), job, PlanState(job.plan.state_folder))
    assert [(decision.action, decision.reason) for decision in decisions] == [("run", "other code")] * 3


def test_dry_run_writes_nothing(folder: Path) -> None:
    reasons(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["sources"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, NAMES),
        ({"only": ["shard", "ingest"]}, ["ingest", "shard"]),
        ({"start": "curate"}, ["curate", "shard"]),
        ({"until": "curate"}, ["ingest", "curate"]),
        ({"start": "curate", "until": "curate"}, ["curate"]),
    ],
)
def test_only_from_and_until_select_steps(folder: Path, options: dict, expected: list[str]) -> None:
    assert [step.name for step in select(tiny_steps(), tiny_job(folder), **options)] == expected


@pytest.mark.parametrize(
    "options",
    [
        {"only": ["train"]},
        {"start": "sahrd"},
        {"until": "export"},
        {"start": "shard", "until": "ingest"},
        {"only": ["shard"], "until": "shard"},
    ],
)
def test_a_selection_that_cannot_be_is_a_usage_error(folder: Path, options: dict) -> None:
    with pytest.raises(UsageError):
        select(tiny_steps(), tiny_job(folder), **options)


def start(folder: Path, pause_s: float) -> subprocess.Popen[str]:
    """Run the plan in another process; returns when it has begun a step."""
    command = [sys.executable, tiny_plans.__file__, str(folder), str(pause_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    journal, size = folder / "plan" / "journal.jsonl", 0
    if journal.exists():
        size = journal.stat().st_size
    deadline = time.monotonic() + 60
    while process.poll() is None and not (journal.exists() and journal.stat().st_size > size):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_plan_killed_at_random_moments_continues_and_repeats_no_finished_step(folder: Path) -> None:
    rng = random.Random(17)
    finished: dict[str, float] = {}
    for _ in range(3):
        process = start(folder, pause_s=0.15)
        time.sleep(rng.uniform(0.05, 0.4))
        killed = process.poll() is None
        if killed:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        state = PlanState(folder / "plan")
        for name in NAMES:
            if record := state.finished(name):
                assert finished.setdefault(name, record.at) == record.at
        if killed and not state.finished("shard"):
            assert {"interrupted"} == {
                step["state"] for step in plan_status_of(folder) if step["state"] not in ("done", "waiting")
            }
    run_tiny(folder)
    assert (folder / "joined.txt").read_text() == "aaaaabbbbbccccc"
    assert (folder / "count.txt").read_text() == "15\n"
    state = PlanState(folder / "plan")
    assert {name: record.at for name in finished if (record := state.finished(name))} == finished
    assert actions(folder) == ["skipped"] * 3


def plan_status_of(folder: Path) -> list[dict]:
    state = PlanState(folder / "plan")
    if not list((folder / "plan" / "runs").glob("*.yaml")):
        from uniavgen.orchestration.plan_runs.plan_file import resolved

        job = tiny_job(folder)
        state.store_plan(resolved(job.plan, job.settings), "test")
    return plan_status(folder)["steps"]


def test_status_says_alive_and_running_then_dead_and_interrupted(folder: Path) -> None:
    process = start(folder, pause_s=60)
    try:
        steps = plan_status_of(folder)
        status = plan_status(folder)
        assert (status["state"], status["pid"]) == ("alive", process.pid)
        assert [step["state"] for step in steps] == ["running", "waiting", "waiting"]
        with pytest.raises(UserError, match="busy"):
            run_tiny(folder)
    finally:
        process.kill()
        process.wait()
    status = plan_status(folder)
    assert status["state"] == "dead"
    assert status["since"] <= time.time()
    assert [step["state"] for step in status["steps"]] == ["interrupted", "waiting", "waiting"]
    assert reasons(folder)["ingest"][1].startswith("interrupted, it had begun")


def test_a_failed_step_is_recorded_and_the_steps_behind_it_do_not_run(folder: Path) -> None:
    (folder / "sources" / "d").mkdir()  # reading it fails
    with pytest.raises(IsADirectoryError):
        run_tiny(folder)
    assert "join" not in log(folder)
    steps = plan_status_of(folder)
    assert [step["state"] for step in steps] == ["failed", "waiting", "waiting"]
    assert "Is a directory" in steps[0]["message"]
    assert plan_status(folder)["failures"] == {"IsADirectoryError": 1}
    assert reasons(folder)["ingest"][1].startswith("failed ")
    (folder / "sources" / "d").rmdir()
    assert actions(folder) == ["done"] * 3
    assert log(folder).count("copy a") == 1
