"""Invariances and phase of AudioGen-Omni's streams and positions."""

from dataclasses import replace

import pytest
import torch
from small_mmdit import LATENTS, filled, made_batch, small_audiogen

from uniavgen.train.model.dit import rotate
from uniavgen.train.model.mmdit.layers import Clock, rope_of
from uniavgen.train.model.mmdit.network import MMDiT, rope_tables

T = torch.tensor([0.3, 0.8])
INPUTS = ("clip", "transcript", "caption", "sync")


@pytest.fixture(scope="module")
def model() -> MMDiT:
    return filled(small_audiogen()).eval()


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("content", [0.0, float("nan"), 1e30])
def test_content_of_an_absent_input_changes_nothing(model: MMDiT, name: str, content: float) -> None:
    batch = made_batch(model.config)
    conditions = batch.conditions.without({name: (True, False)})
    value = conditions.inputs[name].clone()
    value[0] = 10**6 if name == "transcript" else content
    other = replace(conditions, inputs={**conditions.inputs, name: value})
    assert torch.equal(model(batch.latent, T, conditions), model(batch.latent, T, other))


@pytest.mark.parametrize("name", INPUTS)
def test_present_content_changes_the_velocity(model: MMDiT, name: str) -> None:
    batch = made_batch(model.config)
    other = made_batch(model.config, seed=9).conditions.inputs[name]
    conditions = replace(batch.conditions, inputs={**batch.conditions.inputs, name: other})
    assert not torch.equal(model(batch.latent, T, batch.conditions), model(batch.latent, T, conditions))


def test_left_out_input_equals_an_absent_one(model: MMDiT) -> None:
    batch = made_batch(model.config)
    absent = batch.conditions.without(dict.fromkeys(INPUTS, (True, True)))
    left_out = replace(absent, inputs={}, present={})
    assert torch.equal(model(batch.latent, T, absent), model(batch.latent, T, left_out))


def test_order_of_caption_tokens_without_positions_changes_nothing(model: MMDiT) -> None:
    batch = made_batch(model.config)
    caption = batch.conditions.inputs["caption"]
    inputs = {**batch.conditions.inputs, "caption": caption.flip(1)}
    turned = model(batch.latent, T, replace(batch.conditions, inputs=inputs))
    assert torch.allclose(model(batch.latent, T, batch.conditions), turned, atol=1e-4, rtol=1e-4)
    video = {**batch.conditions.inputs, "clip": batch.conditions.inputs["clip"].flip(1)}
    other = model(batch.latent, T, replace(batch.conditions, inputs=video))
    assert not torch.allclose(turned, other, atol=1e-2)


def test_padding_of_a_caption_changes_nothing(model: MMDiT) -> None:
    batch = made_batch(model.config)
    caption = batch.conditions.inputs["caption"].clone()
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    first = replace(batch.conditions, masks={"caption": mask})
    caption[0, 3:] = 50.0
    second = replace(first, inputs={**first.inputs, "caption": caption})
    assert torch.equal(model(batch.latent, T, first), model(batch.latent, T, second))


def test_moving_all_clocks_changes_no_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 31, 2, 8, generator=generator) for _ in range(2))
    clocks = [Clock(25, 1.0), Clock(6, 25 / 6)]

    def scores(offset: float) -> torch.Tensor:
        rope = rope_of(clocks, 8, 10_000.0, offset)
        assert rope is not None
        return torch.einsum("bqhd,bkhd->bhqk", rotate(q, rope), rotate(k, rope))

    assert torch.allclose(scores(0), scores(1234.5), atol=1e-4)
    assert not torch.allclose(scores(0), torch.einsum("bqhd,bkhd->bhqk", q, k), atol=1e-2)


@pytest.mark.parametrize(("positions", "aligned"), [("aligned", True), ("unaligned", False)])
def test_attention_peaks_at_the_video_token_of_equal_time(positions: str, aligned: bool) -> None:
    """With equal queries and keys, audio j attends most to the video token nearest in time."""
    config = small_audiogen(positions=positions, dim=64, heads=1)
    ropes = rope_tables(
        config, LATENTS, (("clip", 6), ("transcript", LATENTS), ("caption", 5)), torch.device("cpu")
    )
    assert ropes["audio"] is not None
    assert ropes["clip"] is not None
    ones = torch.ones(1, 1, 1, 64)
    q = rotate(ones.expand(1, LATENTS, 1, 64), ropes["audio"])[0, :, 0]
    k = rotate(ones.expand(1, 6, 1, 64), ropes["clip"])[0, :, 0]
    peak = (q @ k.T).argmax(dim=1)
    times = torch.arange(LATENTS) / 31.25
    nearest = (times[:, None] - torch.arange(6)[None] / 8).abs().argmin(dim=1)
    assert torch.equal(peak, nearest) is aligned


@pytest.mark.parametrize(
    ("positions", "rotated"),
    [
        ("none", (False, False, False)),
        ("unaligned", (True, True, False)),
        ("aligned", (True, True, False)),
        ("all", (True, True, True)),
    ],
)
def test_positions_choose_the_rotated_streams(positions: str, rotated: tuple[bool, ...]) -> None:
    config = small_audiogen(positions=positions)
    ropes = rope_tables(
        config, LATENTS, (("clip", 6), ("transcript", LATENTS), ("caption", 5)), torch.device("cpu")
    )

    def turns(name: str, start: int, stop: int) -> bool:
        rope = ropes[name]
        return rope is not None and bool((rope[1][start:stop] != 0).any())

    middle = ("text", 0, LATENTS), ("text", LATENTS, LATENTS + 5)
    assert tuple(turns(*part) for part in (("clip", 0, 6), *middle)) == rotated
