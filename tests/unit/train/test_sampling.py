"""Sampling: known velocity fields, guidance, number of forward passes, every task, seeds."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train.batch import REFERENCE, BranchInput, DualOutput, LatentBatch
from uniavgen.train.config import ObjectiveConfig, SamplingConfig
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import Model
from uniavgen.train.sampling import guide, sample, sampling_condition, time_grid
from uniavgen.train.tasks import Task

MakeBatch = Callable[..., LatentBatch]
MEAN, STD = 2.0, 0.5


def gaussian(x: Tensor, t: Tensor, mean: float) -> tuple[Tensor, Tensor]:
    """Velocity E[noise - x_0 | x_t] where x_0 is N(mean, STD^2), and the log density of x_t."""
    t = t.view(-1, *[1] * (x.dim() - 1))
    centre, variance = (1 - t) * mean, (1 - t) ** 2 * STD**2 + t**2
    offset = (x - centre) / variance
    velocity = t * offset - (mean + (1 - t) * STD**2 * offset)
    return velocity, -0.5 * (x - centre) * offset


def two_gaussians(
    video: BranchInput | None, audio: BranchInput, interact: bool = True, **_: object
) -> DualOutput:
    """With interaction the condition is known: the upper Gaussian; without, both are equally likely."""
    outs = []
    for data in (video, audio):
        if data is None:
            outs.append(None)
            continue
        upper, log_upper = gaussian(data.latent, data.timestep, MEAN)
        lower, log_lower = gaussian(data.latent, data.timestep, -MEAN)
        weight = torch.sigmoid(log_upper - log_lower)
        outs.append(upper if interact else weight * upper + (1 - weight) * lower)
    return DualOutput(*outs, face_masks=None)


def test_unguided_sampling_reaches_known_distribution(make_batch: MakeBatch) -> None:
    video, mel = sample(
        two_gaussians, make_batch(), Task.JOINT, SamplingConfig(guidance="none", steps=200), seed=0
    )
    for x in (video, mel):
        assert x.mean().item() == pytest.approx(MEAN, abs=0.03)
        assert x.std().item() == pytest.approx(STD, abs=0.03)


def test_sampling_without_interaction_reaches_both_modes(make_batch: MakeBatch) -> None:
    def apart(video: BranchInput | None, audio: BranchInput, **_: object) -> DualOutput:
        return two_gaussians(video, audio, interact=False)

    _, mel = sample(apart, make_batch(), Task.JOINT, SamplingConfig(guidance="none", steps=100), seed=0)
    assert (mel > 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert mel.abs().mean().item() == pytest.approx(MEAN, abs=0.05)


def test_guidance_moves_away_from_unconditioned_with_scale(make_batch: MakeBatch) -> None:
    means = []
    for scale in (1.0, 2.0, 4.0):
        config = SamplingConfig(video_scale=scale, audio_scale=2 * scale, steps=60, interval=(0.0, 1.0))
        video, mel = sample(two_gaussians, make_batch(), Task.JOINT, config, seed=0)
        means.append((video.mean().item(), mel.mean().item()))
    assert means[0][0] == pytest.approx(MEAN, abs=0.05)
    for before, after in itertools.pairwise(means):
        assert after[0] > before[0] + 0.01
        assert after[1] > before[1] + 0.01
    assert all(mel > video for video, mel in means[1:])


def counting(model: Model) -> tuple[Model, list[tuple[bool, bool, bool]]]:
    calls = []

    def counted(
        video: BranchInput | None, audio: BranchInput | None, interact: bool = True, **_: object
    ) -> DualOutput:
        calls.append((video is not None, audio is not None, interact))
        return model(video, audio, interact=interact)

    return counted, calls


def test_two_passes_per_step_inside_interval_and_one_outside(
    make_batch: MakeBatch,
) -> None:
    model, calls = counting(two_gaussians)
    sample(model, make_batch(), Task.JOINT, SamplingConfig(steps=10), seed=0)
    # t = 1.0, 0.9 .. 0.5 are guided (6 of 10 steps)
    assert len(calls) == 6 * 2 + 4
    assert calls[:2] == [(True, True, True), (True, True, False)]
    assert calls[-1] == (True, True, True)
    model, calls = counting(two_gaussians)
    sample(model, make_batch(), Task.JOINT, SamplingConfig(steps=10, guidance="text"), seed=0)
    assert len(calls) == 16
    assert all(call == (True, True, True) for call in calls)
    model, calls = counting(two_gaussians)
    sample(model, make_batch(), Task.JOINT, SamplingConfig(steps=10, guidance="none"), seed=0)
    assert len(calls) == 10


def test_unguided_pass_omits_branch_that_generates_nothing(
    make_batch: MakeBatch, make_config: Callable[..., ModelConfig], randomised: Callable[..., DualBranch]
) -> None:
    for task, kept in ((Task.DUBBING, (False, True, False)), (Task.AUDIO_DRIVEN, (True, False, False))):
        model, calls = counting(randomised(make_config()))
        sample(model, make_batch(), task, SamplingConfig(steps=1), seed=0)
        assert calls == [(True, True, True), kept]


def test_guidance_combines_as_in_paper_and_scale_1_is_none() -> None:
    u0, u = torch.randn(2, 3, 4)
    torch.testing.assert_close(guide(u0, u, 3.0), u0 + 3 * (u - u0))
    torch.testing.assert_close(guide(u0, u, 1.0), u)


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize(("size", "latents"), [(1, 5), (3, 6)])
def test_every_task_samples_and_keeps_given_parts(
    task: Task,
    size: int,
    latents: int,
    make_batch: MakeBatch,
    make_config: Callable[..., ModelConfig],
    randomised: Callable[..., DualBranch],
) -> None:
    batch = make_batch(size=size, latents=latents)
    config = SamplingConfig(steps=2, continuation_latents=2)
    video, mel = sample(randomised(make_config()), batch, task, config, seed=0)
    assert video.shape == batch.video.shape
    assert mel.shape == batch.mel.shape
    given_video = {Task.DUBBING: latents, Task.CONTINUATION: 2}.get(task, 0)
    given_mel = {Task.AUDIO_DRIVEN: mel.shape[2], Task.CONTINUATION: 30}.get(task, 0)
    assert torch.equal(video[:, :, :given_video], batch.video[:, :, :given_video])
    assert torch.equal(mel[:, :, :given_mel], batch.mel[:, :, :given_mel])
    assert (video[:, :, given_video:] != batch.video[:, :, given_video:]).all()
    assert (mel[:, :, given_mel:] != batch.mel[:, :, given_mel:]).all()


def test_parts_that_are_not_given_have_no_influence(
    make_batch: MakeBatch, make_config: Callable[..., ModelConfig], randomised: Callable[..., DualBranch]
) -> None:
    model, batch = randomised(make_config()), make_batch()
    blank = replace(batch, video=torch.zeros_like(batch.video), mel=torch.zeros_like(batch.mel))
    known, unknown = (
        sample(model, b, Task.REFERENCE, SamplingConfig(steps=2), seed=4) for b in (batch, blank)
    )
    assert torch.equal(known[0], unknown[0])
    assert torch.equal(known[1], unknown[1])


def test_sampling_depends_on_seed_and_not_on_batch(
    make_batch: MakeBatch, make_config: Callable[..., ModelConfig], randomised: Callable[..., DualBranch]
) -> None:
    model, batch, config = randomised(make_config()), make_batch(), SamplingConfig(steps=3)
    first, again, other = (sample(model, batch, Task.JOINT, config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])
    members = {k: v[1:] for k, v in vars(batch).items() if v is not None}
    alone = sample(model, LatentBatch(**members), Task.JOINT, config, seed=1, sample_indices=(1,))
    torch.testing.assert_close(alone[1], first[1][1:], rtol=1e-4, atol=1e-4)


def test_audio_only_sampling(
    make_batch: MakeBatch, make_config: Callable[..., ModelConfig], randomised: Callable[..., DualBranch]
) -> None:
    batch = replace(make_batch(), video=None, reference=None, caption=None, caption_mask=None, face=None)
    video, mel = sample(randomised(make_config()), batch, Task.REFERENCE, SamplingConfig(steps=2), seed=0)
    assert video is None
    assert mel.shape == batch.mel.shape


def test_empty_speech_text_and_nan_condition_are_refused(make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch.speech_mask[1] = False
    with pytest.raises(UserError, match="empty"):
        sample(two_gaussians, batch, Task.JOINT, SamplingConfig(), seed=0)
    sample(two_gaussians, batch, Task.AUDIO_DRIVEN, SamplingConfig(steps=1, guidance="none"), seed=0)
    batch.mel[0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"batch\.mel holds NaN"):
        sample(two_gaussians, batch, Task.AUDIO_DRIVEN, SamplingConfig(), seed=0)


def test_time_grid_runs_from_1_to_0_and_shift_keeps_ends() -> None:
    assert time_grid(4, 1.0) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    shifted = time_grid(4, 5.0)
    assert shifted[0] == 1
    assert shifted[-1] == 0
    assert all(s > e for s, e in zip(shifted[1:-1], (0.75, 0.5, 0.25), strict=True))


@pytest.mark.parametrize("gap", [0, 3])
def test_references_stand_where_training_put_them(gap: int, make_batch: MakeBatch) -> None:
    """In every pass, guided or not: positions before the clip end `gap` before it."""
    starts: set[tuple[int, int]] = set()

    def recorded(video: BranchInput, audio: BranchInput | None, **named: object) -> DualOutput:
        assert audio is not None
        for data in (video, audio):
            reference = data.layout[0]
            assert reference.role == REFERENCE
            starts.add((reference.start + reference.length, data.layout[1].start))
        return two_gaussians(video, audio, **named)  # type: ignore[arg-type]

    sample(recorded, make_batch(), Task.REFERENCE, SamplingConfig(steps=2), seed=0, gap=gap)
    assert starts == {(-gap, 0)}


def test_continuation_is_sampled_from_a_share_it_is_trained_on(make_batch: MakeBatch) -> None:
    config, trained = SamplingConfig(), ObjectiveConfig()
    assert trained.continuation_min <= config.continuation_share <= trained.continuation_max
    for latents in (5, 21):
        condition = sampling_condition(make_batch(latents=latents), Task.CONTINUATION, config)
        assert condition.latents == round(0.35 * latents)
    fixed = sampling_condition(
        make_batch(latents=21), Task.CONTINUATION, SamplingConfig(continuation_latents=3)
    )
    assert fixed.latents == 3
