"""Configuration: layers, presets, and errors for unknown or wrong settings."""

from pathlib import Path

import pytest

from uniavgen.orchestration.config import Config, known_keys, load_config, preset_names
from uniavgen.shards.errors import UsageError, UserError
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.tasks import PAPER_MIX


def test_tiny_preset_is_the_defaults_in_code() -> None:
    assert load_config("tiny") == Config()


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name: str) -> None:
    stages = ["multitask"] if name == "talk" else ["audio", "joint", "multitask"]
    assert [stage.name for stage in load_config(name).train.stages] == stages


def test_paper_preset_is_the_published_model_and_table() -> None:
    train = load_config("paper").train
    assert train.model == ModelConfig.paper()
    table = [(stage.name, stage.batch, stage.lr, stage.steps, stage.takes_from) for stage in train.stages]
    assert table == [
        ("audio", 256, 2e-5, 160_000, None),
        ("joint", 32, 5e-6, 30_000, "audio"),
        ("multitask", 32, 5e-6, 10_000, "joint"),
    ]
    assert train.stage("audio").emilia.languages == ["en"]
    assert train.stage("multitask").tasks == PAPER_MIX
    # lambda_m falls from 0.1 to 0 over the joint stage and stays there
    lambdas = [
        (stage.face_config(train.model.face).lambda_start, stage.face_config(train.model.face).lambda_end)
        for stage in train.stages[1:]
    ]
    assert lambdas == [(0.1, 0.0), (0.0, 0.0)]


def test_audio_shards_of_the_paper_preset_can_be_replaced() -> None:
    config = load_config(
        "paper", assignments=["train.stages.0.emilia.shards=[/data/Emilia/EN, s3://bucket/EN]"]
    )
    emilia = config.train.stage("audio").emilia
    assert (emilia.shards, emilia.languages) == (["/data/Emilia/EN", "s3://bucket/EN"], ["en"])


def test_later_layers_override_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {seed: 5, workers: 1}\n")
    train = load_config("tiny", file, ["train.seed=7", "train.stages.1.steps=3"]).train
    assert (train.seed, train.workers, train.stages[1].steps) == (7, 1, 3)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.sed=1", "unknown setting train.sed, did you mean train.seed"),
        ("nothing.at.all=1", "unknown setting nothing"),
        ("train.seed=x", "train.seed: Input should be a valid integer"),
        ("train.seed", "--set takes KEY=VALUE"),
        ("train.data.frames=80", "use frames=81"),
        ("train.stages.joint.steps=3", "train.stages.joint"),
    ],
)
def test_wrong_assignment_is_a_usage_error_in_one_line(assignment: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("tiny", None, [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_error_in_a_file_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for content, message in (("train: {sed: 1}", "did you mean train.seed"), ("a: [", "not valid YAML")):
        file.write_text(content)
        with pytest.raises(UserError, match=message) as caught:
            load_config("tiny", file)
        assert str(file) in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        load_config("tiny", tmp_path / "absent.yaml")


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="laptop, paper, talk, tiny"):
        load_config("huge")


def test_known_keys_include_nested_settings() -> None:
    assert {"train.seed", "curate.split.val_share", "tracking.uri"} <= set(known_keys())


@pytest.mark.parametrize(
    "text", ["stages: [{name: joint, tasks: {dubbing: 1}}]", "objective: {mix: {dubbing: 1}}"]
)
def test_mapping_in_a_file_replaces_the_mapping(text: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"train: {{{text}}}")
    train = load_config("tiny", file).train
    mapping = train.stages[0].tasks if "stages" in text else train.objective.mix
    assert mapping == {"dubbing": 1}


def test_settings_that_fit_only_together_are_validated_together() -> None:
    pair = ["train.data.height=96", "train.data.width=96"]
    config = load_config(assignments=pair)
    assert (config.train.data.height, config.train.data.width) == (96, 96)
    text = ["train.data.codecs.caption=umt5", "train.model.video.text_dim=4096"]
    assert load_config(assignments=text).train.model.video.text_dim == 4096
    with pytest.raises(UsageError) as caught:
        load_config(assignments=text[:1])
    assert "captions of umt5 are 4096 wide" in str(caught.value)
    assert "got" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_assigned_mapping_replaces_and_assigned_section_is_merged() -> None:
    train = load_config(assignments=["train.stages.2.tasks={joint: 1}", "train.stages.1={steps: 3}"]).train
    assert train.stages[2].tasks == {"joint": 1}
    assert (train.stages[1].steps, train.stages[1].name) == (3, "joint")
    assert load_config(assignments=["train.stages.2.tasks.joint=9"]).train.stages[2].tasks["dubbing"] == 2


def test_off_is_a_word_and_still_a_boolean_where_one_is_needed(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {data: {latents: off}}")
    assert load_config("tiny", file).train.data.latents == "off"
    config = load_config(
        assignments=["train.data.latents=off", "train.deepspeed.activation_checkpointing=on"]
    )
    assert config.train.data.latents == "off"
    assert config.train.deepspeed.activation_checkpointing is True


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"train: {seed: 1}\ntrain: {seed: 2}\n",
            r"key train is given twice, first in line 1 \(.*mine.yaml:2\)",
        ),
        (b"- a\n- b\n", r"must be a mapping \(KEY: VALUE\), it is a list \(.*mine.yaml\)"),
        ("train:\n  # é\n".encode("latin-1"), r"not UTF-8 \(byte 0xe9\) \(.*mine.yaml:2\)"),
        (b"train:\n  seed: x\n", r"train.seed: .*valid integer.*mine.yaml:2"),
        (b"train:\n  data: [1]\n", r"data is a section"),
        (b"train: {seed: ${x}}\n", r"mine.yaml:1"),
        (b"a: b: c\n", r"not valid YAML.*mine.yaml:1"),
        (b"!!python/object:os.system {}\n", r"not valid YAML.*mine.yaml:1"),
    ],
)
def test_wrong_file_is_one_line_with_file_and_place(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_config("tiny", file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_of_windows_editors_are_accepted(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {seed: 5}\ningest:\n", encoding=encoding)
    assert load_config("tiny", file).train.seed == 5
