"""The model configuration: the paper's values, errors that name the field, no torch."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from uniavgen.train.config import ObjectiveConfig, SamplingConfig
from uniavgen.train.model.config import BranchConfig, InteractionConfig, ModelConfig
from uniavgen.train.model.flops import Shapes, forward_flops
from uniavgen.train.tasks import PAPER_MIX, Task


def test_configuration_imports_no_torch() -> None:
    modules = "uniavgen.train.config, uniavgen.train.model.family, uniavgen.train.tasks"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_defaults_match_the_paper() -> None:
    interaction, sampler = InteractionConfig(), SamplingConfig()
    assert (interaction.a2v, interaction.v2a, interaction.window) == ("ati", "ati", 12)
    assert (interaction.layers, interaction.position) == ("interleaved", "before-self-attention")
    assert (sampler.steps, sampler.video_scale, sampler.audio_scale, sampler.interval) == (50, 3, 2, (0.5, 1))
    assert [PAPER_MIX[task] for task in Task] == [4, 1, 1, 2, 2]
    paper = ModelConfig.paper()
    assert (paper.video.dim, paper.video.layers, paper.video.heads, paper.video.ffn_dim) == (
        3072,
        30,
        24,
        14336,
    )
    assert (paper.audio.dim, paper.audio.layers, paper.audio.heads, paper.audio.ffn_dim) == (
        1536,
        30,
        12,
        8960,
    )


def test_interaction_layer_indices() -> None:
    chosen = {
        name: InteractionConfig(layers=name).layer_indices(6)
        for name in ("interleaved", "all", "first-half", "last-half")
    }
    assert chosen == {
        "interleaved": (1, 3, 5),
        "all": (0, 1, 2, 3, 4, 5),
        "first-half": (0, 1, 2),
        "last-half": (3, 4, 5),
    }
    assert len(ModelConfig.paper().interaction.layer_indices(30)) == 15


def test_model_config_survives_json() -> None:
    for config in (ModelConfig.tiny(), ModelConfig.paper(), ObjectiveConfig(), SamplingConfig()):
        assert type(config).model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InteractionConfig(windows=3), "windows"),
        (lambda: InteractionConfig(a2v="global"), "a2v"),
        (lambda: InteractionConfig(window=-1), "window"),
        (
            lambda: BranchConfig(dim=30, layers=1, heads=4, ffn_dim=8, in_channels=4, text_dim=4),
            "dim 30 / heads 4",
        ),
        (lambda: ModelConfig(audio=ModelConfig().audio.model_copy(update={"layers": 3})), "audio.layers 3"),
        (lambda: ModelConfig(speech_text={"dim": 32}), "speech_text.dim 32"),
        (lambda: SamplingConfig(interval=(0.7, 0.2)), "interval"),
        (lambda: SamplingConfig(steps=0), "steps"),
        (lambda: ObjectiveConfig(mix={"joint": 0}), "mix"),
        (lambda: ObjectiveConfig(mix={"singing": 1}), "mix"),
        (lambda: ObjectiveConfig(continuation_min=0.9), "continuation_min"),
    ],
)
def test_bad_model_field_is_named(build, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build()


def test_flops_of_paper_size() -> None:
    flops = forward_flops(ModelConfig.paper(), Shapes(latents=21, height=30, width=52, mels=475))
    one = flops["interactions"] / 15
    # PAPER.md's figure for A2V alone is 357 GF a layer, 309 of them projections; V2A adds about 140
    assert 0.45e12 < one < 0.6e12
    apart = forward_flops(
        ModelConfig.paper(), Shapes(latents=21, height=30, width=52, mels=475), interact=False
    )
    assert apart["interactions"] == 0
    assert apart["video"] == flops["video"]
