"""A stage that starts from Wan checkpoints: every weight is in its key report."""

import json
from pathlib import Path

import pytest
import torch
from made_runs import SMALL_DATA, SMALL_MODEL
from safetensors.torch import save_file

from uniavgen.shards.errors import UserError
from uniavgen.train.config import PretrainedConfig, StageConfig, TrainConfig
from uniavgen.train.model.dit import Branch
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.pretrained import load_branches, wan_state_dict
from uniavgen.train.trainer import Job, build_model


def random_branch(seed: int) -> Branch:
    torch.manual_seed(seed)
    branch = Branch(SMALL_MODEL.video)
    with torch.no_grad():
        for parameter in branch.parameters():
            parameter.normal_()
    return branch


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, Branch]:
    """A video branch in the original layout, in two shards with an index, in bf16 as hubs hold it."""
    branch, folder = random_branch(7), tmp_path / "wan"
    folder.mkdir()
    state = {name: value.bfloat16().contiguous() for name, value in wan_state_dict(branch).items()}
    names = sorted(state)
    files = {f"m-{part}.safetensors": names[part::2] for part in (0, 1)}
    for file, keys in files.items():
        save_file({key: state[key] for key in keys}, folder / file)
    index = {key: file for file, keys in files.items() for key in keys}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder, branch


def test_stage_loads_pretrained_branch_and_reports_keys(
    tmp_path: Path, checkpoint: tuple[Path, Branch]
) -> None:
    folder, branch = checkpoint
    stage = StageConfig(name="joint", pretrained=PretrainedConfig(video=str(folder)))
    config = TrainConfig(model=SMALL_MODEL, data=SMALL_DATA, stages=[stage], workers=1)
    model = build_model(Job(config, "joint", "", str(tmp_path / "run")), stage, 0)
    for name, value in branch.state_dict().items():
        loaded = model.video.state_dict()[name]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, value.bfloat16().float()), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    report = json.loads((tmp_path / "run" / "joint" / "stage.json").read_text())["key_report"]
    line = next(line for line in report if "video from" in line)
    renamed = sum("modulation" in name for name in branch.state_dict())
    assert f"{len(branch.state_dict()) - renamed} taken, {renamed} renamed, 0 new, 0 unused" in line


def test_misshapen_parts_need_pretrained_skip(checkpoint: tuple[Path, Branch]) -> None:
    folder, _ = checkpoint
    wide = SMALL_MODEL.video.model_copy(update={"in_channels": 16})
    model = DualBranch(SMALL_MODEL.model_copy(update={"video": wide}))
    before = model.video.patch_embedding.weight.clone()
    with pytest.raises(UserError, match="has shape"):
        load_branches(model, {"video": str(folder)}, [])
    skip = ["video.patch_embedding", "video.head.head"]
    report = load_branches(model, {"video": str(folder)}, skip)["video"]
    assert report.new == [
        "head.head.bias",
        "head.head.weight",
        "patch_embedding.bias",
        "patch_embedding.weight",
    ]
    assert torch.equal(model.video.patch_embedding.weight, before)


def test_incomplete_checkpoint_and_branch_loaded_twice_are_refused(
    tmp_path: Path, checkpoint: tuple[Path, Branch]
) -> None:
    folder, branch = checkpoint
    model = DualBranch(SMALL_MODEL)
    holed = {
        name: value.contiguous()
        for name, value in wan_state_dict(branch).items()
        if not name.startswith("blocks.1.ffn")
    }
    save_file(holed, tmp_path / "holed.safetensors")
    with pytest.raises(
        UserError, match=r"4 weights of the video branch are not in the checkpoint: blocks\.1\.ffn\.0"
    ):
        load_branches(model, {"video": str(tmp_path / "holed.safetensors")}, [])
    with pytest.raises(UserError, match=r"pretrained\.video is named, but the stage takes this branch"):
        load_branches(model, {"video": str(folder)}, [], ["video.head.head.weight"])
    del model.video
    with pytest.raises(UserError, match="has no such branch"):
        load_branches(model, {"video": str(folder)}, [])
