"""`uniavgen settings`: the output gives the same configuration back, and every setting has a comment."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from uniavgen.orchestration.cli import typer_app
from uniavgen.orchestration.commands.settings import setting_value, settings_as_yaml
from uniavgen.orchestration.config import Config, known_keys, load_config, preset_names
from uniavgen.shards.errors import UsageError

PAPER = load_config("paper")


@pytest.mark.parametrize("name", preset_names())
def test_output_as_config_file_gives_the_same_settings(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(settings_as_yaml(load_config(name)))
    assert load_config("tiny", file) == load_config(name)


@given(st.sampled_from(known_keys()))
@settings(deadline=None, max_examples=40)
def test_section_holds_its_values_and_nothing_else(section: str) -> None:
    expected = setting_value(PAPER, section)
    for name in reversed(section.split(".")):
        expected = {name: expected}
    assert yaml.safe_load(settings_as_yaml(PAPER, section)) == expected


def test_every_setting_has_a_comment_above_it() -> None:
    lines = [line.strip() for line in settings_as_yaml(Config(train=load_config("tiny").train)).splitlines()]
    stages = lines.index("stages:")
    second = [number for number, line in enumerate(lines) if line == "-"][1]
    after = next(number for number in range(second, len(lines)) if lines[number].startswith("#"))
    assert second > stages
    bare = [line for above, line in pairwise(lines) if ":" in line and line[0] != "#" and above[0] != "#"]
    # only the first stage has comments
    assert [line for line in bare if line not in lines[second:after]] == []


def test_comment_names_the_default_of_a_changed_setting_and_the_choices() -> None:
    assert "(default: fp32)\ndtype: bf16" in settings_as_yaml(
        load_config("paper"), "train.deepspeed.dtype"
    ).replace("    ", "")
    assert "[transnetv2 | scenedetect]" in settings_as_yaml(Config(), "ingest.shots.detector")


def test_unknown_section_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"unknown setting train\.deepsped.*did you mean train\.deepspeed\?"):
        settings_as_yaml(Config(), "train.deepsped")


def test_command_prints_yaml_or_one_json_object() -> None:
    shown = CliRunner().invoke(typer_app("settings"), ["train.seed", "--set", "train.seed=7"])
    assert (shown.exit_code, yaml.safe_load(shown.stdout)) == (0, {"train": {"seed": 7}})
    shown = CliRunner().invoke(typer_app("settings"), ["train.seed", "--json"])
    assert (shown.exit_code, yaml.safe_load(shown.stdout)) == (0, {"train.seed": 0})
    assert CliRunner().invoke(typer_app("settings"), ["train.sed"]).exit_code == 2
