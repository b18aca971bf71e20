"""Our branch is the same function as diffusers' WanTransformer3DModel on the same weights."""

import pytest
import torch
from small_wan import velocity, wan_pair

from uniavgen.shards.errors import UserError
from uniavgen.train.batch import CONDITION, NOISY, REFERENCE, BranchInput, Segment, TokenLayout
from uniavgen.train.model.config import BranchConfig
from uniavgen.train.model.dit import Branch, per_frame, rope_table, rotate
from uniavgen.train.model.pretrained import branch_key

TI2V_5B = {"in_channels": 48, "heads": 4, "dim": 96, "ffn_dim": 448, "layers": 3}
T2V_1_3B = {"in_channels": 16, "heads": 3, "dim": 96, "ffn_dim": 560, "layers": 2}


def inputs(shape: dict, layout: TokenLayout) -> BranchInput:
    frames = sum(s.length for s in layout)
    latent, text = torch.randn(2, shape["in_channels"], frames, 6, 8), torch.randn(2, 16, 40)
    return BranchInput(latent, layout, torch.tensor([0.31, 0.98]), text, torch.ones(2, 16, dtype=torch.bool))


@pytest.mark.parametrize("shape", [TI2V_5B, T2V_1_3B], ids=["TI2V-5B", "1.3B"])
def test_single_timestep_equals_wan(shape: dict) -> None:
    branch, wan = wan_pair(shape, text_dim=40, text_len=16)
    data = inputs(shape, (Segment(NOISY, 0, 5),))
    ours, theirs = velocity(branch, data), wan(data.latent, data.timestep * 1000, data.text).sample
    assert (ours - theirs).abs().max() <= 1e-5
    assert theirs.abs().max() > 0.5
    probe = torch.randn_like(ours)
    (ours * probe).mean().backward()
    (theirs * probe).mean().backward()
    for key, parameter in wan.named_parameters():
        grad = branch.get_parameter(branch_key(key)).grad
        assert (grad.flatten() - parameter.grad.flatten()).abs().max() <= 1e-5, key


@pytest.mark.parametrize("shape", [TI2V_5B, T2V_1_3B], ids=["TI2V-5B", "1.3B"])
def test_clean_and_noisy_frames_equal_wan_per_token_timesteps(shape: dict) -> None:
    branch, wan = wan_pair(shape, text_dim=40, text_len=16)
    data = inputs(shape, (Segment(REFERENCE, -1, 1), Segment(CONDITION, 0, 2), Segment(NOISY, 2, 4)))
    noisy = (data.timestep * 1000)[:, None].expand(2, 4 * 12)
    per_token = torch.cat([torch.zeros(2, 3 * 12), noisy], dim=1)
    with torch.no_grad():
        theirs = wan(data.latent, per_token, data.text).sample
        assert (velocity(branch, data) - theirs).abs().max() <= 1e-5


def test_short_text_is_padded_like_wan() -> None:
    branch, wan = wan_pair(TI2V_5B, text_dim=40, text_len=16)
    data = inputs(TI2V_5B, (Segment(NOISY, 0, 3),))
    padded = data.text.clone()
    padded[:, 5:] = 0
    data.text, data.text_mask = data.text[:, :8], torch.arange(8).expand(2, 8) < 5
    with torch.no_grad():
        theirs = wan(data.latent, data.timestep * 1000, padded).sample
        assert (velocity(branch, data) - theirs).abs().max() <= 1e-5
    data.text, data.text_mask = torch.randn(2, 17, 40), torch.ones(2, 17, dtype=torch.bool)
    with pytest.raises(UserError, match="text_len"):
        velocity(branch, data)


def test_modulation_is_per_frame_not_per_token() -> None:
    pair_of_times = torch.randn(2, 2, 8)
    rows = per_frame(pair_of_times, (Segment(REFERENCE, -1, 1), Segment(NOISY, 0, 3)))
    assert rows.shape == (2, 4, 1, 8)
    assert torch.equal(rows[:, 0, 0], pair_of_times[:, 0])
    assert torch.equal(rows[:, 3, 0], pair_of_times[:, 1])


def test_attention_scores_depend_on_position_differences() -> None:
    config = BranchConfig(dim=64, layers=1, heads=2, ffn_dim=8, in_channels=4, text_dim=4, rope_axes="time")
    q, k = torch.randn(2, 1, 5, 2, 32)
    scores = []
    for start in (-7, 0, 400):
        rope = rope_table(config, (Segment(NOISY, start, 5),), (1, 1), torch.device("cpu"))
        scores.append(torch.einsum("blhd,bmhd->bhlm", rotate(q, rope), rotate(k, rope)))
    assert (scores[0] - scores[1]).abs().max() < 1e-4
    assert (scores[0] - scores[2]).abs().max() < 1e-4


def test_misfitting_latent_is_named() -> None:
    branch = Branch(
        BranchConfig(dim=32, layers=1, heads=2, ffn_dim=8, in_channels=4, patch=(2, 2), text_dim=4)
    )
    text, mask = torch.zeros(1, 1, 4), torch.ones(1, 1, dtype=torch.bool)
    for shape in ((1, 5, 3, 4, 4), (1, 4, 3, 5, 4), (1, 4, 2, 4, 4)):
        data = BranchInput(torch.zeros(shape), (Segment(NOISY, 0, 3),), torch.zeros(1), text, mask)
        with pytest.raises(UserError, match="does not fit"):
            branch.rope(data)
