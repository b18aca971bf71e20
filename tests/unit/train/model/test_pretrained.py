"""Wan checkpoints in real layouts, at small width: every key is loaded or reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from uniavgen.shards.errors import UserError
from uniavgen.train.model.config import BranchConfig, ModelConfig, SpeechTextConfig
from uniavgen.train.model.dit import Branch
from uniavgen.train.model.pretrained import build_model, initialise, load_branch, wan_state_dict

if TYPE_CHECKING:
    import diffusers

VIDEO = BranchConfig(
    dim=48, layers=2, heads=2, ffn_dim=64, in_channels=48, patch=(2, 2), text_dim=20, text_len=8
)
AUDIO = BranchConfig(dim=24, layers=2, heads=2, ffn_dim=32, in_channels=100, text_dim=16, rope_axes="time")
CONFIG = ModelConfig(video=VIDEO, audio=AUDIO, speech_text=SpeechTextConfig(dim=16, layers=1))


@pytest.fixture
def wan() -> diffusers.WanTransformer3DModel:
    import diffusers

    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=48,
        out_channels=48,
        text_dim=20,
        ffn_dim=64,
        num_layers=2,
    )


@pytest.fixture
def original(wan: diffusers.WanTransformer3DModel) -> dict[str, torch.Tensor]:
    """The same weights under the original repository's names, by diffusers' rules written the other way
    round."""
    rules = [
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("attn1.", "self_attn."),
        ("attn2.", "cross_attn."),
        ("to_out.0", "o"),
        ("to_q", "q"),
        ("to_k", "k"),
        ("to_v", "v"),
        ("ffn.net.0.proj", "ffn.0"),
        ("ffn.net.2", "ffn.2"),
        ("norm2", "norm3"),
        ("proj_out", "head.head"),
    ]
    state = {}
    for key, value in wan.state_dict().items():
        for theirs, ours in rules:
            key = key.replace(theirs, ours)
        name = (
            "head.modulation"
            if key == "scale_shift_table"
            else key.replace("scale_shift_table", "modulation")
        )
        state[name] = value.clone()
    return state


def shards(folder: Path, state: dict[str, torch.Tensor], name: str) -> Path:
    """Two shards and their index, as hubs hold large checkpoints."""
    folder.mkdir(parents=True)
    keys = sorted(state)
    halves = {f"{name}-{i + 1:05}-of-00002.safetensors": keys[i::2] for i in range(2)}
    for file, part in halves.items():
        save_file({key: state[key].contiguous() for key in part}, folder / file)
    index = {"weight_map": {key: file for file, part in halves.items() for key in part}}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_original_and_diffusers_layout_load_the_same_model(
    tmp_path: Path, wan: diffusers.WanTransformer3DModel, original: dict[str, torch.Tensor]
) -> None:
    folders = {
        "original": shards(tmp_path / "original", original, "diffusion_pytorch_model"),
        "diffusers": shards(tmp_path / "diffusers", wan.state_dict(), "diffusion_pytorch_model"),
    }
    states = []
    for layout, folder in folders.items():
        model, reports = build_model(CONFIG, video=folder, seed=1)
        report = reports["video"]
        assert not report.new
        assert not report.unused
        assert len(report.taken) + len(report.renamed) == len(original)
        assert len(report.renamed) == (3 if layout == "original" else len(original) - 2), report
        assert not any(p.is_meta for p in model.parameters())
        states.append(model.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_wan_state_dict_is_the_inverse_of_loading(tmp_path: Path, original: dict[str, torch.Tensor]) -> None:
    save_file(original, tmp_path / "model.safetensors")
    branch = Branch(VIDEO)
    load_branch(branch, tmp_path / "model.safetensors")
    written = wan_state_dict(branch)
    assert written.keys() == original.keys()
    assert all(torch.equal(written[key], original[key]) for key in original)


def test_loading_keeps_no_second_copy(tmp_path: Path, original: dict[str, torch.Tensor]) -> None:
    save_file(original, tmp_path / "model.safetensors")
    with torch.device("meta"):
        branch = Branch(VIDEO)
    load_branch(branch, tmp_path / "model.safetensors", dtype=torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 and not p.is_meta and p.requires_grad for p in branch.parameters())


def test_missing_and_unused_keys_are_reported(tmp_path: Path, original: dict[str, torch.Tensor]) -> None:
    part = {key: value for key, value in original.items() if not key.startswith("head")}
    part["blocks.0.cross_attn.k_img.weight"] = torch.zeros(2)
    save_file(part, tmp_path / "model.safetensors")
    with torch.device("meta"):
        branch = Branch(VIDEO)
    report = load_branch(branch, tmp_path / "model.safetensors", skip=("text_embedding",))
    assert report.unused == [
        "blocks.0.cross_attn.k_img.weight",
        *(k for k in sorted(part) if k.startswith("text_emb")),
    ]
    assert report.new == sorted(k for k in branch.state_dict() if k.startswith(("head", "text_embedding")))
    assert "new: head.head.bias" in str(report)
    initialise(branch, seed=0)
    assert not branch.head.head.weight.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.0.gate.weight": torch.zeros(1)}, "unknown key blocks.0.gate.weight"),
        ({"blocks.2.norm3.weight": torch.zeros(48)}, "unknown key blocks.2.norm3.weight"),
        ({"blocks.1.ffn.0.bias": torch.zeros(65)}, r"blocks.1.ffn.0.bias has shape \[65\]"),
    ],
)
def test_unknown_or_misshapen_key_is_refused_by_name(
    change: dict[str, torch.Tensor], message: str, tmp_path: Path, original: dict[str, torch.Tensor]
) -> None:
    save_file(original | change, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        build_model(CONFIG, video=tmp_path)


def test_missing_and_damaged_files_are_named(tmp_path: Path, original: dict[str, torch.Tensor]) -> None:
    with pytest.raises(UserError, match="no \\*.safetensors"):
        load_branch(Branch(VIDEO), tmp_path)
    folder = shards(tmp_path / "sharded", original, "model")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="no model-00002-of-00002.safetensors"):
        load_branch(Branch(VIDEO), folder)
    (tmp_path / "bad.safetensors").write_bytes(b"\x10" * 64)
    with pytest.raises(UserError, match="unreadable checkpoint"):
        load_branch(Branch(VIDEO), tmp_path / "bad.safetensors")


def test_initialisation_depends_on_seed_only() -> None:
    first, again, other = (build_model(CONFIG, seed=seed)[0].state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
