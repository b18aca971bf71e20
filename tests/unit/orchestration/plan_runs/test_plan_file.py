"""Plan files: paths, steps, settings, errors with file and line, and that a resolved plan gives the same."""

from pathlib import Path

import pytest
import yaml

from uniavgen.orchestration.config import preset_names
from uniavgen.orchestration.plan_runs.plan_file import plan_settings, read_plan, resolved
from uniavgen.orchestration.plan_runs.state import PlanState
from uniavgen.orchestration.plan_runs.steps import STEPS, Job, code_digest, step_settings
from uniavgen.shards.errors import UserError


def write(folder: Path, text: str) -> Path:
    path = folder / "talks.yaml"
    path.write_text(text)
    return path


def test_paths_start_from_the_plan_file_whatever_the_current_folder(tmp_path: Path) -> None:
    path = write(
        tmp_path, "folder: data\nsources: [raw, s3://bucket/raw, /abs]\nrun: /runs/1\nsteps: [ingest, export]"
    )
    plan = read_plan(path)
    assert (plan.name, plan.home, plan.folder) == ("talks", tmp_path, tmp_path / "data")
    assert (plan.corpus, plan.run) == (tmp_path / "data" / "corpus", Path("/runs/1"))
    assert plan.sources == [str(tmp_path / "raw"), "s3://bucket/raw", "/abs"]
    assert plan.steps.export is not None
    assert plan.steps.export.out == tmp_path / "data" / "model"
    assert plan.steps.train is None


def test_steps_are_a_mapping_or_a_list_of_names_and_mappings(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, "steps: [{curate: {policy: fine-tune}}, shard, report:]"))
    assert plan == read_plan(write(tmp_path, "steps: {shard: {}, report:, curate: {policy: fine-tune}}"))
    assert plan.steps.curate is not None
    assert plan.steps.curate.policy == "fine-tune"
    assert plan.steps.train is None


def test_a_plan_without_steps_has_all_of_them(tmp_path: Path) -> None:
    plan = read_plan(write(tmp_path, "sources: [raw]"))
    assert all(plan.steps.options(step.name) is not None for step in STEPS)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("sources: [raw]\ncorpsu: here", 2, "corpsu"),
        ("sources: [raw]\nsteps:\n  curate: {}\n  shrad: {}", 4, "shrad"),
        ("sources: [raw]\nsteps:\n  sample: {tasks: []}", 3, "steps.sample.tasks"),
        ("sources: [raw]\nsettings:\n  train:\n    sed: 1", 4, "train.sed"),
        ("sources: [raw]\nsettings:\n  curate: {policy: 1, polic: 2}", 3, "polic"),
        ("sources: [raw]\nsources: [other]", 2, "twice"),
        ("- ingest", None, "mapping"),
        ("steps: [curate, curate]", None, "twice"),
        ("steps: [[curate]]", 1, "steps"),
        ("steps: 3", 1, "steps"),
        ("sources: raw", 1, "sources"),
        ("steps: [curate]\nsettings: {tracking: 3}", None, "tracking"),
        ("steps: [ingest]", None, "names no source"),
        ("sources: [raw]\nplan_version: 2", 2, "plan_version"),
    ],
)
def test_a_wrong_plan_is_one_line_with_file_and_line(
    tmp_path: Path, text: str, line: int | None, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        plan_settings(read_plan(path), path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.where == f"{path}:{line}" if line else caught.value.where.startswith(str(path))


@pytest.mark.parametrize("preset", [name for name in preset_names() if not name.startswith("ablate")])
def test_a_resolved_plan_gives_the_same_plan_and_settings(tmp_path: Path, preset: str) -> None:
    text = f"preset: {preset}\nfolder: data\nsources: [raw]\nsettings: {{curate: {{policy: fine-tune}}}}\n"
    path = write(tmp_path, text)
    plan = read_plan(path)
    settings = plan_settings(plan, path, assignments=["train.seed=7", "shard.shard_mb=3"])
    state = PlanState(tmp_path / "elsewhere")
    state.create()
    stored = state.store_plan(resolved(plan, settings), "1.0")
    again = read_plan(stored)
    assert again.model_dump(exclude={"settings"}) == plan.model_dump(exclude={"settings"})
    assert plan_settings(again, stored) == settings
    for step in STEPS:
        assert step_settings(step, Job(again, plan_settings(again, stored))) == step_settings(
            step, Job(plan, settings)
        )
    assert state.store_plan(resolved(plan, settings), "1.1") == stored  # equal plans share one file
    assert yaml.safe_load(stored.read_text())["settings"]["train"]["seed"] == 7


def test_settings_of_the_command_line_override_those_of_the_plan(tmp_path: Path) -> None:
    path = write(tmp_path, "sources: [raw]\nsettings: {train: {seed: 3}, shard: {shard_mb: 5}}")
    settings = plan_settings(read_plan(path), path, assignments=["train.seed=4"])
    assert (settings.train.seed, settings.shard.shard_mb) == (4, 5)
    assert settings.tracking.folder == str(tmp_path / "mlflow")


def test_steps_name_sections_and_code_that_exist(tmp_path: Path) -> None:
    path = write(tmp_path, "sources: [raw]")
    plan = read_plan(path)
    job = Job(plan, plan_settings(plan, path))
    names = [step.name for step in STEPS]
    for number, step in enumerate(STEPS):
        assert set(step.after) <= set(names[:number])
        assert step_settings(step, job)
        assert len(code_digest(step.code)) == 16
