"""Loss, drops, sampling, FLOPs of the video-to-audio transformer."""

import pytest
import torch
from dispatch import OperationCounter
from small_mmdit import LATENTS, filled, made_batch, small_audiogen, small_mmaudio
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from uniavgen.shards.errors import UserError
from uniavgen.train import flow_matching
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.family import family_of
from uniavgen.train.model.mmdit.batch import Conditions, validate_sound_batch
from uniavgen.train.model.mmdit.config import MMDiTConfig
from uniavgen.train.model.mmdit.costs import SoundShapes, forward_flops, operations
from uniavgen.train.model.mmdit.network import MMDiT
from uniavgen.train.model.mmdit.objective import MMDiTObjective, drops_for, sample_latents
from uniavgen.train.model.mmdit.recipe import SoundObjectiveConfig, SoundSamplingConfig

CONFIGS = pytest.mark.parametrize("config", [small_mmaudio(), small_audiogen()], ids=["mmaudio", "audiogen"])
DRAW = Draw(0, 5, (0, 1))


@CONFIGS
def test_untrained_loss_is_that_of_velocity_zero(config: MMDiTConfig) -> None:
    """The last layer starts at zero, so the loss is the mean square of noise - data, normalised."""
    model, batch = MMDiT(config), made_batch(config)
    model.scale.mean.fill_(0.5)
    model.scale.std.fill_(2.0)
    loss = MMDiTObjective(SoundObjectiveConfig(), config).losses(model, batch, None, DRAW, {})["total"]
    noise = torch.stack([flow_matching.noise_for(0, 5, i, (3, LATENTS), "audio-noise") for i in (0, 1)])
    assert float(loss) == pytest.approx(float((noise - (batch.latent - 0.5) / 2).square().mean()), rel=1e-5)


@CONFIGS
def test_every_parameter_gets_a_gradient_whatever_is_dropped(config: MMDiTConfig) -> None:
    model, batch = filled(config), made_batch(config)
    for share in (0.0, 1.0):
        settings = SoundObjectiveConfig(dropout={"video": share, "text": share, "transcript": share})
        model.zero_grad()
        objective = MMDiTObjective(settings, config, checkpointing=share == 1.0)
        objective.losses(model, batch, None, DRAW, {})["total"].backward()
        unused = [n for n, p in model.named_parameters() if p.grad is None]
        assert unused == []


def test_drops_are_independent_and_video_drops_its_inputs_together() -> None:
    config = SoundObjectiveConfig(dropout={"video": 0.3, "text": 0.5, "transcript": 0.2})
    draw = Draw(3, 0, tuple(range(2000)))
    drops = drops_for(config, small_audiogen(), draw)
    assert drops["clip"] == drops["sync"]
    shares = {name: sum(values) / 2000 for name, values in drops.items()}
    assert shares == pytest.approx({"clip": 0.3, "sync": 0.3, "caption": 0.5, "transcript": 0.2}, abs=0.04)
    both = sum(a and b for a, b in zip(drops["clip"], drops["caption"], strict=True)) / 2000
    assert both == pytest.approx(0.15, abs=0.03)


def test_joint_drop_removes_all_inputs() -> None:
    config = SoundObjectiveConfig(dropout={}, joint_dropout=1.0)
    assert all(all(values) for values in drops_for(config, small_audiogen(), DRAW).values())


def test_defaults_are_the_published_recipe() -> None:
    objective, sampling = SoundObjectiveConfig(), SoundSamplingConfig()
    assert (objective.timestep.distribution, objective.timestep.mean, objective.timestep.std) == (
        "logit-normal",
        0,
        1,
    )
    assert (objective.dropout["video"], objective.dropout["text"]) == (0.1, 0.1)
    assert (sampling.steps, sampling.guidance) == (25, 4.5)


@pytest.mark.parametrize("guidance", [0.0, 1.0, 4.5])
def test_sampling_equals_naive_euler_in_mmaudios_direction(guidance: float) -> None:
    config = small_mmaudio()
    model, batch = filled(config).eval(), made_batch(config)
    settings = SoundSamplingConfig(steps=4, guidance=guidance)
    ours = sample_latents(model, batch.conditions, LATENTS, settings, samples=2, seed=11)
    x = torch.stack([flow_matching.noise_for(11, 0, i, (3, LATENTS)) for i in range(2)])
    empty = Conditions({}, {}, {})
    with torch.no_grad():
        for step in range(4):
            s = torch.full((2,), step / 4)  # 0 is noise
            v = -model(x, 1 - s, batch.conditions)
            if guidance >= 1:
                v = guidance * v + (1 - guidance) * -model(x, 1 - s, empty)
            x = x + v / 4
    expected = x * model.scale.std.view(1, 3, 1) + model.scale.mean.view(1, 3, 1)
    assert torch.allclose(ours, expected, atol=1e-3, rtol=1e-3)


def test_sampling_needs_an_input_and_an_encoded_negative_text() -> None:
    model = MMDiT(small_mmaudio())
    with pytest.raises(UserError, match="no input is given"):
        sample_latents(model, Conditions({}, {}, {}), LATENTS, SoundSamplingConfig())
    given = made_batch(model.config).conditions
    with pytest.raises(UserError, match="'music' is not encoded"):
        sample_latents(model, given, LATENTS, SoundSamplingConfig(negative_text="music"), samples=2)


@CONFIGS
def test_flops_equal_those_that_torch_counts(config: MMDiTConfig) -> None:
    model, batch = MMDiT(config), made_batch(config, samples=1)
    # the fused kernel for CPUs is not counted
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch.latent, torch.tensor([0.5]), batch.conditions)
    shapes = SoundShapes(config.lengths(0.8))
    assert forward_flops(config, shapes)["total"] == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert family_of(config).forward_flops(shapes) == forward_flops(config, shapes)["total"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("clip", torch.zeros(2, 6, 4), r"clip has shape \[2, 6, 4\]"),
        ("clip", torch.full((2, 6, 6), float("nan")), "clip holds NaN"),
        ("sync", torch.zeros(2, 7, 5), "no multiple of 4"),
        ("smell", torch.zeros(2, 7, 5), "no input smell"),
    ],
)
def test_batches_that_do_not_fit_are_one_line(name: str, value: torch.Tensor, message: str) -> None:
    config = small_mmaudio()
    batch = made_batch(config)
    inputs = {**batch.conditions.inputs, name: value}
    validate_sound_batch(batch, config)
    with pytest.raises(UserError, match=message):
        validate_sound_batch(type(batch)(batch.keys, batch.latent, Conditions(inputs, {}, {})), config)


@CONFIGS
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_are_those_that_are_dispatched(
    config: MMDiTConfig, checkpointing: bool, dtype: torch.dtype
) -> None:
    model = MMDiT(config).to(dtype)
    objective = MMDiTObjective(SoundObjectiveConfig(), config, checkpointing=checkpointing)
    with OperationCounter() as counter:
        objective.losses(model, made_batch(config), None, DRAW, {})["total"].backward()
    planned = operations(config, half=dtype != torch.float32, checkpointing=checkpointing)
    assert planned == pytest.approx(counter.count, rel=0.12)
