"""Checks before the first stage of a run: data or settings that a later stage lacks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_emilia import Spoken, write_spoken
from made_runs import small_config
from made_samples import make_sample, write_shards

from uniavgen.shards.config import EmiliaConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.tar.index import index_name
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.data.stage_stream import Begun, open_stream
from uniavgen.train.diagnostics.config import ValidationConfig
from uniavgen.train.launch import check_stage, check_stages

NAMES = ("audio", "joint")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", [make_sample("b", 24)], "val")
    return write_shards(tmp_path / "shards", [make_sample("a", 24)])


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """Speech from audio shards first, so that only the second stage needs the corpus."""
    spoken = [Spoken(f"EN_B00000_S0000{i}_W000000", "anna", 200, 0.5) for i in range(2)]
    tar = write_spoken(tmp_path / "EN" / "EN-B000000.tar", spoken)
    audio = StageConfig(name="audio", emilia=EmiliaConfig(shards=[str(tar)]))
    joint = StageConfig(name="joint", takes_from="audio", starts_fresh=["video", "interactions"])
    return small_config([audio, joint]).model_copy(update={"validation": ValidationConfig(every=5)})


def set_version(shards: Path) -> None:
    path = shards / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "manifest_version": 99}))


def empty_val(shards: Path) -> None:
    path = shards / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(
        json.dumps({**content, "shards": [entry for entry in content["shards"] if entry["split"] != "val"]})
    )


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no shards": (shutil.rmtree, "no shards here .*; write them: uniavgen shard"),
    "another version": (set_version, "manifest has version 99, this program reads 2"),
    "index gone": (lambda shards: (shards / index_name("train-000000.tar")).unlink(), "a shard has no index"),
    "no val": (empty_val, "the val split is empty"),
}


def test_run_with_data_passes_checks(config: TrainConfig, shards: Path, tmp_path: Path) -> None:
    assert not check_stages(config, NAMES, shards, tmp_path / "run")
    with pytest.raises(UserError, match="run first: uniavgen train audio"):
        check_stage(config, "joint", shards, tmp_path / "run")


@pytest.mark.parametrize("name", FAULTS)
def test_missing_data_of_later_stage_is_reported_first(
    config: TrainConfig, shards: Path, tmp_path: Path, name: str
) -> None:
    plant, message = FAULTS[name]
    plant(shards)
    with pytest.raises(UserError, match=message) as caught:
        check_stages(config, NAMES, shards, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert str(shards) in caught.value.where


def test_unsplittable_batch_of_later_stage_is_reported_first(
    config: TrainConfig, shards: Path, tmp_path: Path
) -> None:
    unsplittable = config.model_copy(
        update={"stages": [config.stages[0], config.stages[1].model_copy(update={"batch": 5})]}
    )
    with pytest.raises(UserError, match="batch 5 of stage joint does not split into 2 workers"):
        check_stages(unsplittable, NAMES, shards, tmp_path / "run")


def test_resumed_stage_names_missing_shard(config: TrainConfig, shards: Path) -> None:
    begun_with = open_stream(config, config.stage("joint"), str(shards), "run").shards
    write_shards(shards, [make_sample("a", 25, seed=1)])
    with pytest.raises(
        UserError, match=r"1 of the run's 1 shards are missing or changed, first train-000000.tar"
    ) as caught:
        open_stream(config, config.stage("joint"), str(shards), "run", Begun(begun_with))
    assert caught.value.kind == "shards-changed"


def test_finished_run_needs_no_data(config: TrainConfig, tmp_path: Path) -> None:
    for name in NAMES:
        folder = RunFolder(tmp_path / "run", name)
        folder.write(done=True, config=config.model_dump(mode="json"))
        folder.weights.write_bytes(b"weights")
    assert check_stages(config, NAMES, tmp_path / "nothing", tmp_path / "run")


def test_too_few_clips_for_the_window_are_reported_first(config: TrainConfig, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "few", [make_sample("a", 24), make_sample("b", 20), make_sample("c", 8)])
    with_val = write_shards(shards, [make_sample("v", 24)], "val")
    stages = [config.stages[0], config.stages[1].model_copy(update={"batch": 4})]
    few = config.model_copy(update={"stages": stages})
    with pytest.raises(
        UserError, match=r"^2 of 3 train samples \(67 %\).*fewer than the 4 of one batch"
    ) as caught:
        check_stages(few, NAMES, with_val, tmp_path / "run")
    assert caught.value.kind == "too-short"
    assert "\n" not in str(caught.value)
