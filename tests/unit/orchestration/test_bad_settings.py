"""Training settings that contradict one another are refused in one line, before anything starts."""

import pytest

from uniavgen.orchestration.config import load_config
from uniavgen.shards.errors import UsageError


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["train.data.frames=16"], r"train\.data\.frames: .*4n \+ 1, got 16; use frames=17"),
        (["train.data.frames=9"], r"model\.interaction\.window is 12 frames, data\.frames has only 9"),
        (
            ["train.model.interaction.window_unit=latent"],
            r"model\.interaction\.window is 12 latents, data\.frames has only 5",
        ),
        (["train.data.height=100"], r"train\.data\.height: .*multiple of 32"),
        (
            ["train.data.codecs.caption=umt5"],
            r"model\.video\.text_dim is 384, captions of umt5 are 4096 wide",
        ),
        (["train.data.codecs.mel.mels=80"], r"model\.audio\.in_channels is 100, data\.codecs\.mel\.mels 80"),
        (["train.model.video.text_len=16"], r"data\.caption_tokens 32 exceeds model\.video\.text_len 16"),
        (["train.model.audio.text_len=16"], r"data\.speech_bytes 64 exceeds model\.audio\.text_len 16"),
        (["train.objective.mix={sing: 1}"], r"train\.objective\.mix.*sing"),
        (["train.stages=[{name: joint, tasks: {sing: 1}}]"], r"train\.stages\.0\.tasks.*sing"),
        (
            ["train.stages=[{name: joint, takes_from: audio}]"],
            "takes from audio, which is not an earlier stage",
        ),
    ],
)
def test_contradicting_settings_are_named(assignments: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_config(assignments=assignments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", ["tiny", "talk", "laptop", "paper"])
def test_presets_have_no_contradictions(preset: str) -> None:
    assert load_config(preset).train.stages
