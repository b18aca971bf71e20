"""The transformer against plain numpy in the layout of MMAudio's released checkpoints."""

import mmaudio_oracle as oracle
import numpy as np
import pytest
import torch
from mmaudio_oracle import Array
from small_mmdit import LATENTS, filled, made_conditions, small_mmaudio

from uniavgen.train.model.mmdit.batch import Conditions
from uniavgen.train.model.mmdit.checkpoint import released_state
from uniavgen.train.model.mmdit.network import MMDiT, rope_tables

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model() -> MMDiT:
    return filled(small_mmaudio()).eval()


@pytest.fixture(scope="module")
def state(model: MMDiT) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in released_state(model).items()}


def assert_close(ours: torch.Tensor, expected: Array) -> None:
    """Equal within 1e-5 of the largest value, or of 1."""
    assert np.abs(ours.detach().double().numpy() - expected).max() < TOLERANCE * max(
        1.0, np.abs(expected).max()
    )


def random_tokens(*lengths: int, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, length, 16, generator=generator) for length in lengths]


@pytest.mark.parametrize("index", [0, 1])
def test_joint_block_equals_numpy(model: MMDiT, state: dict[str, Array], index: int) -> None:
    audio, clip, text, c_g, c_f = random_tokens(LATENTS, 6, 5, 1, LATENTS)
    ropes = rope_tables(model.config, LATENTS, (("clip", 6), ("text", 5)), torch.device("cpu"))
    out = model.joint[index](
        {"audio": audio, "clip": clip, "text": text}, {"audio": c_f, "clip": c_g, "text": c_g}, ropes, None
    )
    arrays = [x[0].double().numpy() for x in (audio, clip, text, c_g, c_f)]
    expected = oracle.joint_block(state, f"joint_blocks.{index}", 2, *arrays, last=index == 1)
    for name, value in zip(("audio", "clip", "text"), expected, strict=True):
        assert_close(out[name][0], value)


def test_fused_block_equals_numpy(model: MMDiT, state: dict[str, Array]) -> None:
    x, c_f = random_tokens(LATENTS, LATENTS)
    rope = rope_tables(model.config, LATENTS, (("clip", 6), ("text", 5)), torch.device("cpu"))["audio"]
    expected = oracle.fused_block(state, "fused_blocks.1", 2, x[0].double().numpy(), c_f[0].double().numpy())
    assert_close(model.fused[1](x, c_f, rope)[0], expected)


@pytest.mark.parametrize(("latents", "features"), [(25, 4), (25, 8), (250, 192), (345, 192), (7, 12)])
def test_frame_condition_equals_numpy(
    model: MMDiT, state: dict[str, Array], latents: int, features: int
) -> None:
    sync = torch.randn(1, features, 5, generator=torch.Generator().manual_seed(features))
    encoded = model.encode(Conditions({"sync": sync}, {}, {}), 1, latents)
    assert encoded.frame is not None
    assert_close(encoded.frame[0], oracle.sync_at_latents(state, sync[0].double().numpy(), latents))


@pytest.mark.parametrize(("latents", "frames"), [(250, 64), (345, 64), (25, 6)])
def test_aligned_rotation_equals_numpy(latents: int, frames: int) -> None:
    config = small_mmaudio()
    ropes = rope_tables(config, latents, (("clip", frames), ("text", 5)), torch.device("cpu"))
    assert ropes["text"] is None
    for name, tokens, step in (("audio", latents, 1.0), ("clip", frames, latents / frames)):
        rope = ropes[name]
        assert rope is not None
        x = np.random.default_rng(0).normal(size=(tokens, 8))
        expected = oracle.turn(x, np.arange(tokens) * step)
        ours = (torch.from_numpy(x[:, 0::2]) + 1j * torch.from_numpy(x[:, 1::2])) * (
            rope[0].double() + 1j * rope[1].double()
        )
        assert np.abs(ours.real.numpy() - expected[:, 0::2]).max() < TOLERANCE
        assert np.abs(ours.imag.numpy() - expected[:, 1::2]).max() < TOLERANCE


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_velocity_is_mmaudios_at_one_minus_t_with_opposite_sign(
    model: MMDiT, state: dict[str, Array], t: float
) -> None:
    conditions = made_conditions(model.config)
    latent = torch.randn(2, 3, LATENTS, generator=torch.Generator().manual_seed(7))
    ours = model(latent, torch.full((2,), t), conditions)
    for row in range(2):
        clip, sync, text = (conditions.inputs[n][row].double().numpy() for n in ("clip", "sync", "text"))
        expected = oracle.mmaudio_velocity(state, 2, latent[row].T.double().numpy(), 1 - t, clip, sync, text)
        assert_close(ours[row].T, -expected)


def test_missing_inputs_are_the_empty_features(model: MMDiT, state: dict[str, Array]) -> None:
    latent = torch.randn(1, 3, LATENTS, generator=torch.Generator().manual_seed(8))
    ours = model(latent, torch.tensor([0.4]), Conditions({}, {}, {}))
    clip = np.repeat(state["empty_clip_feat"], 6, axis=0)
    sync = np.repeat(state["empty_sync_feat"], 4, axis=0)
    text = state["empty_string_feat"]
    expected = oracle.mmaudio_velocity(state, 2, latent[0].T.double().numpy(), 0.6, clip, sync, text)
    assert_close(ours[0].T, -expected)


def test_last_layer_reads_the_global_condition(model: MMDiT) -> None:
    """The released weights need it; the frame condition gives another velocity."""
    conditions = made_conditions(model.config)
    latent, t = (
        torch.randn(2, 3, LATENTS, generator=torch.Generator().manual_seed(7)),
        torch.tensor([0.3, 0.3]),
    )
    seen: list[torch.Tensor] = []
    hook = model.final.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    by_global = model(latent, t, conditions)
    hook.remove()
    assert seen[0].shape == (2, 1, 16)
    other = MMDiT(small_mmaudio(final_condition="frame"))
    other.load_state_dict(model.state_dict())
    assert (other(latent, t, conditions) - by_global).abs().max() > 1e-2


def test_time_enters_unscaled(model: MMDiT, state: dict[str, Array]) -> None:
    t = torch.tensor([0.0, 0.3, 1.0])
    ours = model.time(t, torch.float32)
    for row, value in enumerate(t.tolist()):
        assert_close(ours[row], oracle.time_embedding(state, value))
    assert np.abs(ours[1].detach().numpy() - oracle.time_embedding(state, 300.0)).max() > 1e-2


def test_query_key_value_channels_are_interleaved(model: MMDiT) -> None:
    """Output channel (head * d + i) * 3 + j belongs to q, k, v for j = 0, 1, 2."""
    attention = filled(small_mmaudio()).fused[0].attn
    with torch.no_grad():
        attention.qkv.weight.zero_()
        attention.qkv.bias.copy_(torch.arange(48.0))
        attention.q_norm.weight.fill_(1), attention.k_norm.weight.fill_(1)
    q, k, v = attention(torch.zeros(1, 1, 16), None)
    numbers = torch.arange(48.0).reshape(2, 8, 3)
    assert torch.equal(v[0, 0], numbers[..., 2])
    for ours, j in ((q, 0), (k, 1)):
        raw = numbers[..., j]
        assert torch.allclose(ours[0, 0], raw / raw.square().mean(-1, keepdim=True).sqrt(), atol=1e-5)
