"""Generation from a finished run, for every task. The model is untrained: only the path is tested."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_runs import SMALL_DATA, SMALL_MODEL, small_config
from made_samples import make_sample

from uniavgen.shards import weights
from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import SamplingConfig, tiny_stages
from uniavgen.train.generation import (
    ClipGenerator,
    Conditions,
    choose_device,
    conditions_from,
    fit_conditions,
    generate,
)
from uniavgen.train.tasks import Task

TWO_STEPS = SamplingConfig(steps=2)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    from uniavgen.train.model.dual_branch import DualBranch

    folder = RunFolder(tmp_path_factory.mktemp("run"), "joint")
    torch.manual_seed(0)
    folder.write(done=True, config=small_config(tiny_stages()).model_dump(mode="json"))
    folder.write_weights(DualBranch(SMALL_MODEL).state_dict())
    return folder.path.parent


@pytest.mark.parametrize("task", list(Task))
def test_every_task_generates_video_and_audio_of_same_duration(run_dir: Path, task: Task) -> None:
    sample = make_sample("a", 30, height=96, width=64)
    made = generate(run_dir, task, sample, TWO_STEPS, seed=1)
    assert made.frames.shape == (SMALL_DATA.frames, 64, 64, 3)
    assert made.frames.dtype == np.uint8
    assert made.waveform.shape == (SMALL_DATA.frames * 1500,)
    assert made.waveform.dtype == np.float32
    conditions = fit_conditions(conditions_from(sample, SMALL_DATA, 1), task, SMALL_DATA)
    assert np.array_equal(made.frames, conditions.frames) == (task is Task.DUBBING)
    assert np.array_equal(made.waveform, conditions.waveform) == (task is Task.AUDIO_DRIVEN)


def test_same_seed_gives_same_clip(run_dir: Path) -> None:
    conditions = Conditions("A person.", "Hello there.", np.full((80, 100, 3), 90, np.uint8))
    one, two, other = (generate(run_dir, "joint", conditions, TWO_STEPS, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(one.frames, two.frames)
    assert np.array_equal(one.waveform, two.waveform)
    assert not np.array_equal(one.waveform, other.waveform)


def test_reloaded_model_generates_the_same(run_dir: Path) -> None:
    conditions = Conditions("A person.", "Hello there.", np.full((80, 100, 3), 90, np.uint8))
    generator = ClipGenerator(run_dir)
    for seed in (3, 4):
        kept, anew = (
            generator.generate(Task.JOINT, conditions, TWO_STEPS, seed),
            generate(run_dir, "joint", conditions, TWO_STEPS, seed),
        )
        assert np.array_equal(kept.frames, anew.frames)
        assert np.array_equal(kept.waveform, anew.waveform)
    model = weakref.ref(generator.model)
    generator.close()
    gc.collect()
    assert model() is None


def test_sampling_uses_gpu_if_present() -> None:
    there = torch.cuda.is_available()
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if there else "cpu")
    if there:
        assert choose_device("cuda") == "cuda"
    else:
        with pytest.raises(UserError, match=r"no GPU \(train.device\); set train.device=cpu"):
            choose_device("cuda")


@pytest.mark.parametrize(
    ("task", "conditions", "message"),
    [
        ("joint", Conditions(speech="Hello"), "needs reference"),
        ("joint", Conditions(reference=np.zeros((64, 64, 3), np.uint8), speech=" "), "needs speech"),
        ("dubbing", Conditions(speech="Hello"), "needs frames"),
        (
            "dubbing",
            Conditions(speech="Hello", frames=np.zeros((4, 64, 64, 3), np.uint8)),
            "task dubbing needs 0.81 s",
        ),
        ("sing", Conditions(), "unknown task"),
    ],
)
def test_missing_condition_is_reported(
    run_dir: Path, task: str, conditions: Conditions, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        generate(run_dir, task, conditions, TWO_STEPS)


def test_untrained_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uniavgen train"):
        generate(tmp_path, "joint", Conditions())


def test_continuation_needs_no_reference_image() -> None:
    sample = conditions_from(make_sample("a", 30), SMALL_DATA)
    fitted = fit_conditions(replace(sample, reference=None), Task.CONTINUATION, SMALL_DATA)
    assert fitted.reference is not None
    assert fitted.frames is not None
    assert np.array_equal(fitted.reference, fitted.frames[0])
