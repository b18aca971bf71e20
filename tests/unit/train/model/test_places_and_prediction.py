"""Options for small models: weights per place, and networks that predict the clean latent."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from uniavgen.shards.errors import UserError
from uniavgen.train.batch import NOISY, REFERENCE, BranchInput, Segment
from uniavgen.train.engine.deepspeed_engine import is_matrix
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.dit import SMALLEST_TIME, PlaceLinear, velocity_from_data
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.pretrained import export_tensors, load_branch


def branch_input(t: float = 0.5, height: int = 4, width: int = 4) -> BranchInput:
    layout = (Segment(REFERENCE, -1, 1), Segment(NOISY, 0, 2))
    generator = torch.Generator().manual_seed(1)
    latent = torch.randn(2, 48, 3, height, width, generator=generator)
    text = torch.randn(2, 3, 20, generator=generator)
    return BranchInput(latent, layout, torch.full((2,), t), text, torch.ones(2, 3, dtype=torch.bool))


def with_video(config: ModelConfig, **changes: object) -> ModelConfig:
    return config.model_copy(update={"video": config.video.model_copy(update=changes)})


def test_place_linear_is_one_linear_layer_for_each_place() -> None:
    torch.manual_seed(0)
    layer, x = PlaceLinear(5, 7, 3), torch.randn(2, 4, 3, 5)
    out = layer(x)
    for place in range(3):
        expected = torch.nn.functional.linear(x[:, :, place], layer.weight[place], layer.bias[place])
        torch.testing.assert_close(out[:, :, place], expected)
    bound = 5**-0.5
    assert 0.8 * bound < layer.weight.abs().max() <= bound
    assert PlaceLinear(5, 7, 3, zero=True)(x).abs().max() == 0


def test_tokens_of_equal_content_differ_by_their_place(make_config, randomised) -> None:
    """Without places, equal tokens with the same neighbours everywhere give equal embeddings."""
    data = branch_input()
    data = replace(data, latent=torch.ones_like(data.latent))
    for places, differs in ((None, False), ((2, 2), True)):
        model = randomised(with_video(make_config(), places=places))
        embedded = model.video.begin(data, data.text, model.video.rope(data)).x
        assert bool((embedded[:, :, 0] - embedded[:, :, 3]).abs().max() > 1e-3) == differs


def test_biases_per_place_do_not_decay_with_matrices(make_config) -> None:
    named = dict(DualBranch(with_video(make_config(), places=(2, 2))).video.named_parameters())
    for layer in ("patch_embedding", "head.head"):
        weight, bias = named[f"{layer}.weight"], named[f"{layer}.bias"]
        assert (weight.dim(), bias.dim()) == (3, 2)
        assert is_matrix(f"{layer}.weight", weight)
        assert not is_matrix(f"{layer}.bias", bias)


def test_latents_of_another_grid_are_refused(make_config) -> None:
    model = DualBranch(with_video(make_config(), places=(2, 2)))
    with pytest.raises(UserError, match=r"places \(2, 2\)") as caught:
        model(branch_input(height=8), None)
    assert caught.value.kind == "bad-shape"


@pytest.mark.parametrize("t", [1.0, 0.4, 0.05])
def test_velocity_of_a_perfect_prediction_is_the_true_velocity(t: float) -> None:
    generator = torch.Generator().manual_seed(2)
    clean, noise = (torch.randn(2, 48, 3, 4, 4, generator=generator) for _ in range(2))
    data = replace(branch_input(t), latent=(1 - t) * clean + t * noise)
    torch.testing.assert_close(velocity_from_data(clean, data), noise - clean, atol=1e-4, rtol=1e-4)


def test_velocity_at_time_zero_is_finite() -> None:
    data = branch_input(0.0)
    assert float(velocity_from_data(torch.zeros_like(data.latent), data).abs().max()) <= (
        float(data.latent.abs().max()) / SMALLEST_TIME * 1.001
    )


@pytest.mark.parametrize("t", [0.9, 0.3])
def test_untrained_network_that_predicts_data_says_zero(make_config, t: float) -> None:
    """The head starts at zero: x0 = 0, so the velocity is x_t / t."""
    data, model = branch_input(t), DualBranch(with_video(make_config(), prediction="data"))
    out = model(data, None).video
    torch.testing.assert_close(out, data.latent / t)
    assert float(DualBranch(make_config())(data, None).video.abs().max()) == 0


def test_audio_branch_predicts_data_too(make_config, randomised) -> None:
    config = make_config()
    layout = (Segment(NOISY, 0, 9),)
    latent, ids = torch.randn(2, 100, 9), torch.randint(1, 257, (2, 4))
    data = BranchInput(latent, layout, torch.full((2,), 0.5), ids, torch.ones(2, 4, dtype=torch.bool))
    outs = [
        randomised(config.model_copy(update={"audio": config.audio.model_copy(update={"prediction": kind})}))(
            None, data
        ).audio
        for kind in ("velocity", "data")
    ]
    torch.testing.assert_close(outs[1], (latent - outs[0]) / 0.5, atol=1e-4, rtol=1e-4)


def test_places_survive_export_and_loading(make_config, randomised, tmp_path) -> None:
    from safetensors.torch import save_file

    config = with_video(make_config(), places=(2, 2))
    model = randomised(config)
    tensors = export_tensors(model)["video.safetensors"]
    path = tmp_path / "video.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    fresh = DualBranch(config)
    load_branch(fresh.video, path)
    data = branch_input()
    torch.testing.assert_close(fresh(data, None).video, model(data, None).video)
    with pytest.raises(UserError):
        load_branch(DualBranch(make_config()).video, path)
