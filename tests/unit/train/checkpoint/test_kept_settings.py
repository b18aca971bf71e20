"""A stage that an older release began goes on as it began, under a preset that has more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from uniavgen.shards.config import EmiliaConfig
from uniavgen.train.checkpoint.changes import as_begun, check_changes, settings_that_matter
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import ObjectiveConfig, StageConfig, TrainConfig
from uniavgen.train.timestep_config import TimestepConfig

NEW = {
    "objective": ("video_timestep", "audio_timestep", "interaction_dropout", "interaction_dropout_text"),
    "stage": ("schedule", "lr_end", "lr_every", "lr_factor", "betas", "eps", "decayed"),
    "data": ("crop",),
}
"""Settings that checkpoints of 0.5 and older lack; with `fp32_time`, `word_gaps` and `padding` below."""


def old_settings(config: TrainConfig, stage: str) -> dict[str, Any]:
    settings = json.loads(json.dumps(settings_that_matter(config, config.stage(stage))))
    for section, names in NEW.items():
        for name in names:
            del settings[section][name]
    for branch in ("video", "audio"):
        del settings["model"][branch]["fp32_time"]
    for name in ("word_gaps", "padding"):
        del settings["stage"]["emilia"][name]
    return settings


def begun(folder: Path, settings: dict[str, Any]) -> RunFolder:
    run = RunFolder(folder, "audio")
    run.checkpoint(2).mkdir(parents=True)
    (run.checkpoint(2) / "state.json").write_text(json.dumps({"settings": settings}))
    (run.checkpoint(2) / "manifest.json").write_text("{}")
    return run


@pytest.fixture
def old() -> TrainConfig:
    return TrainConfig(stages=[StageConfig(name="audio", emilia=EmiliaConfig(shards=["/a.tar"]))])


@pytest.fixture
def new(old: TrainConfig) -> TrainConfig:
    emilia = EmiliaConfig(shards=["/a.tar"], word_gaps=True, padding="ignored")
    stage = StageConfig(name="audio", emilia=emilia, decayed="matrices", schedule="cosine", lr_end=0.1)
    model = old.model.model_copy(update={"video": old.model.video.model_copy(update={"fp32_time": True})})
    objective = ObjectiveConfig(
        video_timestep=TimestepConfig(distribution="shifted", shift_tokens=100),
        audio_timestep=TimestepConfig(distribution="uniform"),
        interaction_dropout=0.1,
    )
    data = old.data.model_copy(update={"crop": "face"})
    return TrainConfig(stages=[stage], model=model, objective=objective, data=data)


def test_old_stage_keeps_what_it_began_with(tmp_path: Path, old: TrainConfig, new: TrainConfig) -> None:
    run = begun(tmp_path, old_settings(old, "audio"))
    config, kept = as_begun(run, new, "audio", accept=False)
    assert config == old
    assert set(kept) == {
        "data.crop",
        "model.video.fp32_time",
        "objective.audio_timestep",
        "objective.interaction_dropout",
        "objective.video_timestep",
        "stage.decayed",
        "stage.emilia.padding",
        "stage.emilia.word_gaps",
        "stage.lr_end",
        "stage.schedule",
    }
    assert check_changes(run, 2, config, config.stage("audio"), accept=False) == []


def test_accepted_changes_take_what_can_act(tmp_path: Path, old: TrainConfig, new: TrainConfig) -> None:
    run = begun(tmp_path, old_settings(old, "audio"))
    config, kept = as_begun(run, new, "audio", accept=True)
    assert kept == ["stage.decayed", "stage.emilia.word_gaps"]
    changed = check_changes(run, 2, config, config.stage("audio"), accept=True)
    assert {"stage.schedule", "objective.interaction_dropout", "stage.emilia.padding"} <= set(changed)


def test_other_changes_are_still_refused(tmp_path: Path, old: TrainConfig, new: TrainConfig) -> None:
    run = begun(tmp_path, old_settings(old, "audio"))
    faster = new.model_copy(update={"stages": [new.stages[0].model_copy(update={"lr": 0.5})]})
    config, _ = as_begun(run, faster, "audio", accept=False)
    assert config.stage("audio").lr == 0.5
    with pytest.raises(Exception, match=r"another stage\.lr \("):
        check_changes(run, 2, config, config.stage("audio"), accept=False)


def test_new_stage_gets_the_configuration_as_it_is(tmp_path: Path, new: TrainConfig) -> None:
    assert as_begun(RunFolder(tmp_path, "audio"), new, "audio", accept=False) == (new, [])


def test_finished_old_stage_is_finished_under_the_new_preset(
    tmp_path: Path, old: TrainConfig, new: TrainConfig
) -> None:
    run = RunFolder(tmp_path, "audio")
    content = json.loads(old.model_dump_json())
    settings = old_settings(old, "audio")
    content = {**content, **{name: settings[name] for name in ("objective", "model", "data")}}
    content["stages"] = [{**settings["stage"], "emilia": {"shards": ["/a.tar"]}}]
    run.write(done=True, config=content)
    run.weights.touch()
    config, kept = as_begun(run, new, "audio", accept=False)
    assert settings_that_matter(config, config.stage("audio")) == settings_that_matter(
        old, old.stage("audio")
    )
    assert "stage.decayed" in kept


def test_stage_keeps_them_on_every_later_resume(tmp_path: Path, old: TrainConfig, new: TrainConfig) -> None:
    run = begun(tmp_path, old_settings(old, "audio"))
    first, kept = as_begun(run, new, "audio", accept=False)
    run.write(kept=kept)
    saved = json.dumps({"settings": settings_that_matter(first, first.stage("audio"))})
    (run.checkpoint(2) / "state.json").write_text(saved)
    assert as_begun(run, new, "audio", accept=False) == (first, kept)
