"""`uniavgen ablate` with trainings of two steps: results, MLflow runs, resuming, lock, presets."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file

from uniavgen.orchestration.commands.ablate import run_ablation
from uniavgen.orchestration.config import Config, load_config
from uniavgen.shards.atomic_files import locked
from uniavgen.shards.errors import UsageError, UserError
from uniavgen.train.ablation.experiment import result_file, weights_file
from uniavgen.train.ablation.tables import TABLES, experiment, experiments

MICRO = [
    f"ablate.{each}"
    for each in ("branch_steps=2", "steps=2", "seeds=2", "batch=2", "clips=4", "sampler.steps=2")
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Config:
    tables = "ablate.tables=[position,guidance]"
    return load_config(
        "ablate-quick", None, [*MICRO, tables, f"tracking.folder={tmp_path_factory.mktemp('mlflow')}"]
    )


@pytest.fixture(scope="module")
def run_dir(settings: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished micro ablation, on a Ray that stays up for this module."""
    from uniavgen.shards.cluster import ray_running

    folder = tmp_path_factory.mktemp("ablation") / "run"
    with ray_running():
        run_ablation(folder, settings)
        yield folder
    assert not ray.is_initialized()


@pytest.mark.slow
def test_every_row_and_seed_has_a_result_and_the_summary_holds_their_means(
    run_dir: Path, settings: Config
) -> None:
    planned = experiments(settings.ablate)
    for entry in planned.values():
        measures = json.loads(result_file(run_dir, entry.key).read_text())["measures"]
        assert {
            "sync",
            "sync_error_ms",
            "timbre",
            "expression",
            "identity",
            "video_loss",
            "audio_loss",
            "mask_iou",
        } == set(measures)
    summary = json.loads((run_dir / "summary.json").read_text())
    # three positions (one of them serves all guidances), two seeds, and the branches of each seed
    assert summary["trained"] == 3 * 2 + 2
    row = summary["tables"][1]["rows"][2]
    syncs = [
        json.loads(result_file(run_dir, planned["guidance", row["row"], seed].key).read_text())["measures"][
            "sync"
        ]
        for seed in range(2)
    ]
    assert row["measures"]["sync"]["mean"] == pytest.approx(sum(syncs) / 2)
    assert len(summary["verdicts"]) == 2 * 3 + 3 * 3
    assert sum(summary["judgements"].values()) == len(summary["verdicts"])
    page = (run_dir / "index.html").read_text()
    assert all(row.name in page for table in ("position", "guidance") for row in TABLES[table].rows)


@pytest.mark.slow
def test_mlflow_has_a_child_run_for_every_experiment(run_dir: Path, settings: Config) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(settings.tracking.resolved_uri())
    parent = json.loads((run_dir / "tracking.json").read_text())["run_id"]
    experiment_ids = [each.experiment_id for each in client.search_experiments()]
    children = client.search_runs(experiment_ids, f"tags.mlflow.parentRunId = '{parent}'")
    planned = {each.key: each for each in experiments(settings.ablate).values()}
    assert len(children) == len(planned) == 2 * (3 + 3)
    assert {child.info.status for child in children} == {"FINISHED"}
    assert all({"sync", "loss/total"} <= set(child.data.metrics) for child in children)
    assert {item.path for item in client.list_artifacts(parent, "ablation")} == {
        "ablation/index.html",
        "ablation/summary.json",
    }


@pytest.mark.slow
def test_second_run_trains_only_what_is_missing(run_dir: Path, settings: Config) -> None:
    planned = experiments(settings.ablate)
    lost, kept = planned["position", "before-ffn", 1], planned["position", "before-cross-attention", 1]
    written = {each.key: result_file(run_dir, each.key).stat().st_mtime_ns for each in planned.values()}
    assert run_ablation(run_dir, settings)["trained"] == 0
    before = result_file(run_dir, lost.key).read_text()
    result_file(run_dir, lost.key).unlink()
    weights_file(run_dir, lost.training.key).unlink()
    assert run_ablation(run_dir, settings)["trained"] == 1
    again = {each.key: result_file(run_dir, each.key).stat().st_mtime_ns for each in planned.values()}
    assert {key for key in written if written[key] != again[key]} == {lost.key}
    assert (
        json.loads(result_file(run_dir, lost.key).read_text())["measures"] == json.loads(before)["measures"]
    )
    assert written[kept.key] == again[kept.key]


@pytest.mark.slow
def test_rows_start_from_the_same_branches_with_a_new_interaction(run_dir: Path, settings: Config) -> None:
    entry = experiment(settings.ablate, TABLES["position"].rows[0], 0)
    assert entry.training.begins_with is not None
    begun = load_file(weights_file(run_dir, entry.training.begins_with.key))
    row = load_file(weights_file(run_dir, entry.training.key))
    assert row.keys() == begun.keys()
    zero = [name for name in begun if name.endswith(("a2v.o.weight", "v2a.o.weight"))]
    assert zero
    assert all(not begun[name].any() for name in zero)
    # two steps of a warm-up move a weight by no more than twice the learning rate
    for name, value in row.items():
        if not name.startswith("interactions."):
            assert (value - begun[name]).abs().max() < 2 * settings.ablate.lr * 1.1, name
    assert any(not torch.equal(row[name], begun[name]) for name in row)


@pytest.mark.slow
def test_folder_in_use_is_refused(run_dir: Path, settings: Config) -> None:
    with (
        locked(run_dir / ".lock", "taken"),
        pytest.raises(UserError, match="another ablation runs in this folder"),
    ):
        run_ablation(run_dir, settings)


def test_presets_are_the_papers_tables() -> None:
    assert load_config("ablate-quick").ablate == Config().ablate
    assert set(load_config("ablate-full").ablate.tables) == set(TABLES) - {"timesteps"}  # not of the paper
    with pytest.raises(UsageError, match="ablate-full, ablate-quick"):
        load_config("ablate-huge")
    with pytest.raises(UsageError, match="window 40"):
        load_config("ablate-quick", None, ["ablate.model.window=40"])
