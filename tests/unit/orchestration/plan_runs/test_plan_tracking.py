"""One MLflow run for a plan, with the runs of its commands below it; the stored plan; a real `curate`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow.tracking import MlflowClient
from tiny_plans import tiny_job, tiny_steps

from uniavgen.orchestration.plan_runs.plan_file import plan_settings, read_plan
from uniavgen.orchestration.plan_runs.runner import dry_run, run_plan
from uniavgen.orchestration.plan_runs.steps import Job, Step
from uniavgen.orchestration.tracking.mlflow_runs import open_run
from uniavgen.shards.corpus.tables import Corpus


def recording(step: Step, home: str) -> Step:
    """The step, which also writes to the MLflow run in a folder, as commands do."""

    def run(job: Job) -> dict[str, Any]:
        with open_run(job.settings.tracking, job.plan.folder / home, home, "") as child:
            child.metrics({"done": 1.0})
        return step.run(job)

    return replace(step, run=run)


def test_runs_of_the_steps_are_below_the_run_of_the_plan_old_ones_too(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "a").write_text("a")
    job = tiny_job(tmp_path)
    job.settings.tracking.folder = str(tmp_path / "mlflow")
    with open_run(job.settings.tracking, tmp_path / "old", "old", ""):  # before there was a plan
        pass
    copy, join, count = tiny_steps()
    steps = (recording(copy, "old"), recording(join, "new"), count)
    summary = run_plan(job, steps=steps)
    assert [step["action"] for step in summary["steps"].values()] == ["done"] * 3
    run_plan(job, steps=steps)
    client = MlflowClient(job.settings.tracking.resolved_uri())
    experiment = client.get_experiment_by_name("uniavgen")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    name = f"plan tiny in {'/'.join(tmp_path.parts[-2:])}"
    assert set(runs) == {name, "old", "new"}
    plan = runs[name]
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents == {name: None, "old": plan.info.run_id, "new": plan.info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert set(plan.data.metrics) == {"seconds/ingest", "seconds/curate", "seconds/shard"}
    assert "| shard | done |" in plan.data.tags["mlflow.note.content"]
    stored = [item.path for item in client.list_artifacts(plan.info.run_id, "plans")]
    assert stored == [f"plans/{Path(summary['resolved']).name}"]


def test_a_plan_of_real_commands_runs_once_and_can_be_repeated_from_what_it_stored(
    tmp_path: Path, make_corpus: Callable[..., Corpus], make_clip: Callable[..., dict[str, Any]]
) -> None:
    corpus = make_corpus([make_clip(person, 3.0 * i, person) for person in "abcd" for i in range(2)])
    path = tmp_path / "talks.yaml"
    path.write_text("steps: [shard, caption, curate]\n")
    job = Job(read_plan(path), plan_settings(read_plan(path), path))
    first = run_plan(job)
    assert {name: step["action"] for name, step in first["steps"].items()} == {
        "curate": "done",
        "caption": "skipped",
        "shard": "done",
    }
    assert (corpus.root / "shards" / "manifest.json").is_file()
    stored = Path(first["resolved"])
    again = Job(read_plan(stored), plan_settings(read_plan(stored), stored))
    assert {step["action"] for step in run_plan(again)["steps"].values()} == {"skipped"}
    (corpus.root / "shards" / "manifest.json").unlink()
    assert [(d.step, d.action, d.reason) for d in dry_run(again) if d.action != "skip"] == [
        ("shard", "run", "missing: shards")
    ]
    assert run_plan(again)["steps"]["shard"]["action"] == "done"
