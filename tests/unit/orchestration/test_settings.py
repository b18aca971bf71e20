"""The list of settings: a file that gives the same configuration back, in which every setting has its meaning."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from uniavgen.orchestration.cli import app
from uniavgen.orchestration.commands.settings import commented, values
from uniavgen.orchestration.config import Config, known_keys, load_config, preset_names
from uniavgen.shards.errors import UsageError

PAPER = load_config("paper")


@pytest.mark.parametrize("name", preset_names())
def test_what_is_printed_is_a_file_that_gives_the_same_settings(name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(commented(load_config(name)))
    assert load_config("tiny", file) == load_config(name)


@given(st.sampled_from(known_keys(Config)))
@settings(deadline=None, max_examples=40)
def test_a_part_holds_its_values_and_nothing_else(part: str) -> None:
    wanted = values(PAPER, part)
    for name in reversed(part.split(".")):
        wanted = {name: wanted}
    assert yaml.safe_load(commented(PAPER, part)) == wanted


def test_every_setting_has_its_meaning_above_it() -> None:
    lines = [line.strip() for line in commented(Config(train=load_config("tiny").train)).splitlines()]
    stages = lines.index("stages:")
    second = [number for number, line in enumerate(lines) if line == "-"][1]
    after = next(number for number in range(second, len(lines)) if lines[number].startswith("#"))
    assert second > stages
    bare = [line for above, line in pairwise(lines) if ":" in line and line[0] != "#" and above[0] != "#"]
    # the meaning of what stages hold stands at the first of them
    assert [line for line in bare if line not in lines[second:after]] == []


def test_a_changed_setting_says_its_default_and_a_choice_what_else_there_is() -> None:
    assert "(default: fp32)\ndtype: bf16" in commented(load_config("paper"), "train.deepspeed.dtype").replace(
        "    ", ""
    )
    assert "[transnetv2 | scenedetect]" in commented(Config(), "ingest.shots.detector")


def test_an_unknown_part_is_told_with_the_nearest_one() -> None:
    with pytest.raises(UsageError, match=r"unknown setting train\.deepsped.*did you mean train\.deepspeed\?"):
        commented(Config(), "train.deepsped")


def test_the_command_prints_yaml_or_with_json_one_object() -> None:
    shown = CliRunner().invoke(app, ["settings", "train.seed", "--set", "train.seed=7"])
    assert (shown.exit_code, yaml.safe_load(shown.stdout)) == (0, {"train": {"seed": 7}})
    shown = CliRunner().invoke(app, ["settings", "train.seed", "--json"])
    assert (shown.exit_code, yaml.safe_load(shown.stdout)) == (0, {"train.seed": 0})
    assert CliRunner().invoke(app, ["settings", "train.sed"]).exit_code == 2
