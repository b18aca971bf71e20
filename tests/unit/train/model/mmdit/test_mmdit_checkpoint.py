"""The layout of MMAudio's released checkpoints: every key, and each way in which a file does not fit."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_mmdit import filled, made_batch, small_audiogen, small_mmaudio
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train.model.mmdit.checkpoint import load_released, released_name, released_state
from uniavgen.train.model.mmdit.family import MMDiTFamily
from uniavgen.train.model.mmdit.network import MMDiT
from uniavgen.train.model.parts import train_only


def released_shapes(
    dim: int = 16, hidden: int = 48, joint: int = 2, fused: int = 2
) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a released file at small width, listed by hand."""

    def mlp(name: str, kernel: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        wide = {f"{name}.{w}.weight": (hidden, dim, *kernel) for w in ("w1", "w3")}
        return wide | {f"{name}.w2.weight": (dim, hidden, *kernel)}

    def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    def block(name: str, kernel: tuple[int, ...], *, pre_only: bool = False) -> dict[str, tuple[int, ...]]:
        keys = layer(f"{name}.attn.qkv", 3 * dim, dim)
        keys |= {f"{name}.attn.{n}.weight": (dim // 2,) for n in ("q_norm", "k_norm")}
        keys |= layer(f"{name}.adaLN_modulation.1", (2 if pre_only else 6) * dim, dim)
        return (
            keys
            if pre_only
            else keys | layer(f"{name}.linear1", dim, dim, *kernel) | mlp(f"{name}.ffn", kernel)
        )

    keys = {"latent_mean": (1, 1, 3), "latent_std": (1, 1, 3), "empty_string_feat": (5, 6)}
    keys |= {"empty_clip_feat": (1, 6), "empty_sync_feat": (1, 5), "sync_pos_emb": (1, 1, 4, 5)}
    keys |= layer("audio_input_proj.0", dim, 3, 7) | mlp("audio_input_proj.2", (7,))
    keys |= layer("sync_input_proj.0", dim, 5, 7) | mlp("sync_input_proj.2", (3,))
    keys |= layer("clip_input_proj.0", dim, 6) | mlp("clip_input_proj.1", (3,))
    keys |= layer("text_input_proj.0", dim, 6) | mlp("text_input_proj.1", ())
    keys |= layer("clip_cond_proj", dim, dim) | layer("text_cond_proj", dim, dim) | mlp("global_cond_mlp", ())
    keys |= layer("t_embed.mlp.0", dim, 8) | layer("t_embed.mlp.2", dim, dim)
    for i in range(joint):
        last = i == joint - 1
        keys |= block(f"joint_blocks.{i}.latent_block", (3,))
        keys |= block(f"joint_blocks.{i}.clip_block", (3,), pre_only=last)
        keys |= block(f"joint_blocks.{i}.text_block", (), pre_only=last)
    for i in range(fused):
        keys |= block(f"fused_blocks.{i}", (3,))
    return keys | layer("final_layer.adaLN_modulation.1", 2 * dim, dim) | layer("final_layer.conv", 3, dim, 7)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) for key, shape in released_shapes().items()}


def saved(folder: Path, content: object) -> Path:
    path = folder / "weights.pth"
    torch.save(content, path)
    return path


def test_every_released_key_has_a_place_and_no_other(state: dict[str, Tensor], tmp_path: Path) -> None:
    model = MMDiT(small_mmaudio())
    tables = {"t_embed.freqs": torch.zeros(4), "latent_rot": torch.zeros(1), "clip_rot": torch.zeros(1)}
    load_released(model, saved(tmp_path, state | tables))
    ours = released_state(model)
    assert ours.keys() == state.keys()
    assert all(torch.equal(ours[key], value) for key, value in state.items())


def test_training_checkpoint_gives_its_weights(state: dict[str, Tensor], tmp_path: Path) -> None:
    model = MMDiT(small_mmaudio())
    load_released(
        model, saved(tmp_path, {"it": 3, "weights": state, "optimizer": {}, "scheduler": {}, "ema": {}})
    )
    assert torch.equal(model.scale.mean, state["latent_mean"])


def test_each_missing_key_is_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    model = MMDiT(small_mmaudio())
    names = {released_name(model.config, name): name for name in model.state_dict()}
    path = tmp_path / "incomplete.safetensors"
    for key in state:
        save_file({name: value for name, value in state.items() if name != key}, path)
        with pytest.raises(UserError, match=f"1 weights .* not in the checkpoint: {re.escape(names[key])}"):
            load_released(model, path)


def test_unknown_key_and_other_shape_are_named(state: dict[str, Tensor], tmp_path: Path) -> None:
    model = MMDiT(small_mmaudio())
    with pytest.raises(UserError, match=r"unknown key extra\.weight"):
        load_released(model, saved(tmp_path, state | {"extra.weight": torch.zeros(1)}))
    with pytest.raises(UserError, match=r"latent_std has shape \[1, 1, 4\], the model's is \[1, 1, 3\]"):
        load_released(model, saved(tmp_path, state | {"latent_std": torch.ones(1, 1, 4)}))


def test_checkpoint_of_another_size_says_its_size(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_released(MMDiT(small_mmaudio(dim=32)), saved(tmp_path, state))
    assert "joint_layers 2, audio_layers 2, channels 3, dim 16" in f"{caught.value.hint}"


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04broken"])
def test_damaged_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match="unreadable checkpoint"):
        load_released(MMDiT(small_mmaudio()), path)


def test_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unreadable checkpoint"):
        load_released(MMDiT(small_mmaudio()), saved(tmp_path, {"weights": Path("code")}))


def test_training_keeps_the_empty_text_and_learns_the_other_stand_ins() -> None:
    config = small_mmaudio()
    model = filled(config)
    train_only(model, [])
    before = {name: value.clone() for name, value in model.inputs.empty.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    batch = made_batch(config)
    dropped = batch.conditions.without(dict.fromkeys(("clip", "text", "sync"), (True, True)))
    model(batch.latent, torch.tensor([0.2, 0.7]), dropped).square().mean().backward()
    optimizer.step()
    after = model.inputs.empty.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"clip.features", "sync.features"}


@pytest.mark.parametrize("config", [small_mmaudio(), small_audiogen()], ids=["mmaudio", "audiogen"])
def test_export_returns_the_same_model(config: object, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    family = MMDiTFamily(config)  # type: ignore[arg-type]
    model = filled(family.config)
    for name, tensors in family.export_tensors(model).items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / name)
    loaded, missing = family.load_export(tmp_path)
    assert missing == []
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
    )


def test_audiogen_starts_audio_and_video_from_mmaudio(state: dict[str, Tensor], tmp_path: Path) -> None:
    model = MMDiT(small_audiogen())
    skip = ["inputs.streams.transcript", "inputs.streams.caption", "inputs.transcript"]
    skip += ["inputs.empty.transcript", "inputs.empty.caption", "pools.streams", "empty_string_feat"]
    skip += ["text_input_proj", "text_cond_proj", "clip_cond_proj", "global_cond_mlp"]
    load_released(model, saved(tmp_path, state), skip=skip)
    assert torch.equal(model.fused[0].attn.qkv.weight, state["fused_blocks.0.attn.qkv.weight"])
    assert torch.equal(model.inputs.streams["clip"].project.weight, state["clip_input_proj.0.weight"])
