"""A stage that starts from Wan checkpoints: every weight is in its key report."""

import json
from pathlib import Path

import pytest
import torch
from made_runs import SMALL_DATA, SMALL_MODEL
from safetensors.torch import save_file

from uniavgen.orchestration.config import load_config
from uniavgen.shards.errors import UserError
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.checkpoint.trained_model import export_weights
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.launch import check_stage
from uniavgen.train.model.config import PretrainedConfig
from uniavgen.train.model.dit import Branch
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.pretrained import load_branches, wan_state_dict
from uniavgen.train.starting_weights import part_sources, require_starting_weights
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


def test_paper_preset_asks_for_weights_of_the_video_branch(tmp_path: Path) -> None:
    config = load_config("paper").train
    with pytest.raises(UserError) as caught:
        require_starting_weights(config, config.stage("joint"))
    assert caught.value.kind == "random-weights"
    assert "--set train.stages.1.pretrained.video=" in caught.value.hint
    assert "--set train.stages.1.from_scratch=true" in caught.value.hint
    wan = tmp_path / "wan"
    for assignment in (f"train.stages.1.pretrained.video={wan}", "train.stages.1.from_scratch=true"):
        wan.mkdir(exist_ok=True)
        config = load_config("paper", assignments=[assignment]).train
        for stage in config.stages:
            require_starting_weights(config, stage)
    wan.rmdir()
    config = load_config("paper", assignments=[f"train.stages.1.pretrained.video={wan}"]).train
    with pytest.raises(UserError, match=r"pretrained\.video of stage joint does not exist"):
        require_starting_weights(config, config.stage("joint"))


def test_stage_without_its_weights_is_refused_before_it_starts(tmp_path: Path) -> None:
    stage = StageConfig(name="joint", from_scratch=False)
    config = TrainConfig(model=SMALL_MODEL, data=SMALL_DATA, stages=[stage], workers=1)
    with pytest.raises(UserError, match="would start from random weights"):
        check_stage(config, "joint", tmp_path / "shards", tmp_path / "run")


def test_part_sources_name_every_part() -> None:
    config = load_config("paper", assignments=["train.stages.1.pretrained.video=/weights/wan"]).train
    of_stage = {stage.name: part_sources(config, stage) for stage in config.stages}
    assert of_stage == {
        "audio": {"audio": "random weights", "speech_text": "random weights"},
        "joint": {
            "video": "checkpoint /weights/wan",
            "audio": "stage audio",
            "interactions": "random weights",
            "speech_text": "stage audio",
        },
        "multitask": dict.fromkeys(("video", "audio", "interactions", "speech_text"), "stage joint"),
    }


def test_stage_starts_from_an_export(tmp_path: Path, checkpoint: tuple[Path, Branch]) -> None:
    """All parts come from the export, a branch that is named beside it from its checkpoint."""
    torch.manual_seed(11)
    before, folder = DualBranch(SMALL_MODEL), RunFolder(tmp_path / "before", "joint")
    folder.write(done=True, config=TrainConfig(model=SMALL_MODEL, data=SMALL_DATA).model_dump(mode="json"))
    folder.write_weights(before.state_dict())
    export_weights(tmp_path / "before", tmp_path / "export", "joint")
    path, branch = checkpoint
    for video, expected in (("", before.video), (str(path), branch)):
        stage = StageConfig(
            name="joint", pretrained=PretrainedConfig(export=str(tmp_path / "export"), video=video)
        )
        config = TrainConfig(model=SMALL_MODEL, data=SMALL_DATA, stages=[stage], workers=1, seed=3)
        model = build_model(Job(config, "joint", "", str(tmp_path / f"run{bool(video)}")), stage, 0)
        for name, value in before.state_dict().items():
            if not name.startswith("video."):
                assert torch.equal(model.state_dict()[name], value), name
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(model.video.state_dict()[name], value, atol=0.02, rtol=0.01)
    with pytest.raises(ValueError, match="name one"):
        StageConfig(name="multitask", takes_from="joint", pretrained=PretrainedConfig(export="x"))
