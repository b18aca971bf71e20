"""Exports: weights load back, generation is bit-identical to the run, the model card describes the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made_runs import SMALL_MODEL, small_config
from made_samples import make_sample
from safetensors.torch import load_file

from uniavgen.orchestration.commands.export import export_run
from uniavgen.shards import weights
from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.checkpoint.trained_model import load_export, load_trained
from uniavgen.train.config import SamplingConfig, tiny_stages
from uniavgen.train.generation import generate
from uniavgen.train.model.dit import Branch
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.pretrained import load_branch

OUTCOME = {
    "steps": 40,
    "fixed_start": {"audio": 1.5, "video": 2.0},
    "fixed_end": {"audio": 1.0, "video": 1.5},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose joint stage is done, with weights and another set as their moving average."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "first", "joint")
    plan = small_config(tiny_stages()).model_copy(update={"ema": 0.9})
    folder.write(done=True, config=plan.model_dump(mode="json"), outcome=OUTCOME, corpus_version="abc123")
    torch.manual_seed(0)
    tensors = {
        name: torch.randn_like(tensor) / 8 for name, tensor in DualBranch(SMALL_MODEL).state_dict().items()
    }
    folder.write_weights({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, tensors)
    return folder.path.parent


@pytest.fixture(scope="module")
def exported(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model"
    export_run(run_dir, out)
    return out


def test_export_loads_back_bit_for_bit(run_dir: Path, exported: Path) -> None:
    (model, config), (loaded, loaded_config) = load_trained(run_dir), load_export(exported)
    assert loaded_config == config
    tensors = loaded.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert model.audio.head.head.weight.any(), "the average is exported, not the weights, which are zero here"


def test_exported_branches_have_wan_names_and_shapes(exported: Path) -> None:
    video = load_file(exported / "video.safetensors")
    assert video["patch_embedding.weight"].shape == (32, 48, 1, 2, 2)
    assert {
        "blocks.0.modulation",
        "blocks.0.self_attn.q.weight",
        "head.modulation",
        "time_projection.1.weight",
    } <= video.keys()
    for name, config in (("video", SMALL_MODEL.video), ("audio", SMALL_MODEL.audio)):
        report = load_branch(Branch(config), exported / f"{name}.safetensors")
        assert report.new == report.unused == []


def test_export_has_every_weight_once(exported: Path) -> None:
    files = [load_file(path) for path in sorted(exported.glob("*.safetensors"))]
    counts = json.loads((exported / "config.json").read_text())["parameters"]
    assert sum(tensor.numel() for tensors in files for tensor in tensors.values()) == counts["total"]
    assert sum(len(tensors) for tensors in files) == len(DualBranch(SMALL_MODEL).state_dict())


def test_generation_from_export_equals_generation_from_run(run_dir: Path, exported: Path) -> None:
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    one, other = (
        generate(folder, "joint", make_sample("a", 30), SamplingConfig(steps=2))
        for folder in (run_dir, exported)
    )
    assert np.array_equal(one.frames, other.frames)
    assert np.array_equal(one.waveform, other.waveform)
    assert one.waveform.any()


def test_model_card_names_stage_data_and_losses(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    for text in (
        "# first",
        "`joint`",
        "abc123",
        "| joint | 40 |",
        "audio 1.500, video 2.000",
        "moving average",
        "Licence",
    ):
        assert text in card


def test_damaged_export_raises(exported: Path, tmp_path: Path) -> None:
    for path in exported.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = bytearray((tmp_path / "audio.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / "audio.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"damaged: audio\.safetensors has another SHA-256 than was written"):
        load_trained(tmp_path)
    (tmp_path / "config.json").write_text('{"export_version": 99, "stage": "joint", "config": {}}')
    with pytest.raises(UserError, match="version 99"):
        load_trained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        load_trained(tmp_path)


def test_unfinished_run_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="uniavgen train all"):
        export_run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
