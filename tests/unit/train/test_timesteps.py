"""Timesteps of each branch, their shift by the size of a clip, and the sampler that follows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from uniavgen.train.batch import BranchInput, DualOutput, LatentBatch
from uniavgen.train.config import ObjectiveConfig, SamplingConfig
from uniavgen.train.flow_matching import Draw, timestep_for
from uniavgen.train.model.config import FaceConfig
from uniavgen.train.model.objective import prepare_inputs
from uniavgen.train.sampling import sample, time_grids
from uniavgen.train.tasks import Task
from uniavgen.train.timestep_config import TimestepConfig, shift_for

MakeBatch = Callable[..., LatentBatch]
SHIFTED: dict[str, Any] = {"distribution": "shifted", "shift": 5.0, "shift_tokens": 80}
PAIR = ObjectiveConfig(
    video_timestep=TimestepConfig(**SHIFTED), audio_timestep=TimestepConfig(distribution="uniform")
)


def test_shift_keeps_the_noise_of_a_mean_over_tokens() -> None:
    """Oracle of the rule: n equal tokens at t have the signal-to-noise ratio of m tokens at the shifted
    time."""
    few, many, t = 100, 1600, 0.4
    shift = shift_for(many, 1.0, few)
    later = shift * t / (1 + (shift - 1) * t)
    assert np.sqrt(few) * (1 - t) / t == pytest.approx(np.sqrt(many) * (1 - later) / later)
    assert shift_for(many, 3.0, 0) == 3.0


def test_shift_of_the_papers_window_is_near_what_wan_advises() -> None:
    assert shift_for(21 * 15 * 26, 5.0, 31 * 22 * 40) == pytest.approx(2.74, abs=0.01)


def test_branches_have_their_own_times_of_one_draw(make_batch: MakeBatch) -> None:
    batch = make_batch(size=8)  # 5 latents of 4 x 4: 20 video tokens, so the shift is 5 sqrt(20 / 80) = 2.5
    inputs = prepare_inputs(batch, Task.JOINT, Draw(1, 2, tuple(range(8))), PAIR, FaceConfig())
    assert inputs.video is not None
    u = inputs.audio.timestep.double().numpy()
    expected = 2.5 * u / (1 + 1.5 * u)
    np.testing.assert_allclose(inputs.video.timestep.double().numpy(), expected, atol=1e-6)
    assert len(set(u.tolist())) == 8


def test_pairs_of_times_in_training_are_those_of_the_sampler(make_batch: MakeBatch) -> None:
    batch = make_batch()
    shifts = PAIR.sampler_shifts(batch.tokens)
    video, audio = time_grids(SamplingConfig(steps=7), shifts)
    np.testing.assert_allclose(video, [2.5 * t / (1 + 1.5 * t) for t in audio])
    np.testing.assert_allclose(audio, np.linspace(1, 0, 8), atol=1e-12)


def test_independent_draws_where_asked(make_batch: MakeBatch) -> None:
    apart = PAIR.model_copy(update={"shared_timestep": False})
    inputs = prepare_inputs(make_batch(), Task.JOINT, Draw(1, 2, (0, 1)), apart, FaceConfig())
    assert inputs.video is not None
    u = inputs.audio.timestep
    assert not torch.allclose(inputs.video.timestep, 2.5 * u / (1 + 1.5 * u), atol=1e-3)


def test_runs_without_the_fields_draw_the_same_times(make_batch: MakeBatch) -> None:
    inputs = prepare_inputs(make_batch(), Task.JOINT, Draw(7, 3, (0, 1)), ObjectiveConfig(), FaceConfig())
    expected = [timestep_for(7, 3, index, TimestepConfig()) for index in (0, 1)]
    assert inputs.video is not None
    assert torch.equal(inputs.audio.timestep, torch.tensor(expected))
    assert torch.equal(inputs.video.timestep, inputs.audio.timestep)
    assert ObjectiveConfig().sampler_shifts((8190, 475)) == (1.0, 1.0)


def test_shared_draws_of_two_distributions_are_refused() -> None:
    with pytest.raises(ValidationError, match="set shared_timestep to false"):
        ObjectiveConfig(video_timestep=TimestepConfig(distribution="uniform"))


@pytest.mark.parametrize(
    ("settings", "shifts"),
    [({}, (2.0, 4.0)), ({"shift": 3.0}, (3.0, 3.0)), ({"shift": 3.0, "audio_shift": 1.0}, (3.0, 1.0))],
)
def test_sampler_moves_each_branch_at_its_own_times(
    settings: dict[str, float], shifts: tuple[float, float], make_batch: MakeBatch
) -> None:
    seen: list[tuple[float, float]] = []

    def model(video: BranchInput, audio: BranchInput, **_: object) -> DualOutput:
        seen.append((float(video.timestep[0]), float(audio.timestep[0])))
        return DualOutput(torch.ones_like(video.latent), torch.ones_like(audio.latent), None)

    config = SamplingConfig(steps=4, guidance="none", **settings)
    start, end = (
        sample(
            model, make_batch(), Task.JOINT, config.model_copy(update={"steps": steps}), 0, shifts=(2.0, 4.0)
        )
        for steps in (4, 1)
    )
    grid = [1.0, 0.75, 0.5, 0.25]
    expected = [tuple(s * u / (1 + (s - 1) * u) for s in shifts) for u in grid]
    np.testing.assert_allclose(seen[:4], expected, rtol=1e-6)
    # with a constant velocity any grid from 1 to 0 ends at the same place
    torch.testing.assert_close(start, end, atol=1e-5, rtol=1e-5)


def test_guidance_of_a_branch_follows_its_own_time(make_batch: MakeBatch) -> None:
    def model(video: BranchInput, audio: BranchInput, interact: bool = True, **_: object) -> DualOutput:
        value = 1.0 if interact else 0.0
        return DualOutput(torch.full_like(video.latent, value), torch.full_like(audio.latent, value), None)

    # two steps: video at 1 and 5/6 (guided), audio at 1 and 1/2, below the interval
    config = SamplingConfig(steps=2, interval=(0.6, 1.0), shift=5.0, audio_shift=1.0)
    ones = [sample(model, make_batch(), Task.JOINT, config, 0)]
    base = [sample(model, make_batch(), Task.JOINT, config.model_copy(update={"guidance": "none"}), 0)]
    video, audio = (float((a - b).mean()) for a, b in zip(ones[0], base[0], strict=True))
    assert video == pytest.approx(-2.0, abs=1e-4)  # s_v = 3 over the whole way
    assert audio == pytest.approx(-0.5, abs=1e-4)  # s_a = 2 over half of it
