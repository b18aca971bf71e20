"""Published sizes, lengths by duration, and messages of the configuration."""

import pytest
from pydantic import ValidationError
from small_mmdit import small_audiogen, small_mmaudio

from uniavgen.shards.errors import UserError
from uniavgen.train.model.family import family_of
from uniavgen.train.model.mmdit.config import (
    AUDIOGEN_OMNI,
    GRID_16K,
    GRID_44K,
    MMDiTConfig,
    StreamConfig,
    audiogen_omni,
    mmaudio,
)


def changed(streams: tuple[StreamConfig, ...], **update: object) -> tuple[StreamConfig, ...]:
    return tuple(stream.model_copy(update=update) for stream in streams)


@pytest.mark.parametrize(
    ("name", "millions", "hidden"),
    [
        ("mmaudio-small-16k", 157.28, 1280),
        ("mmaudio-small-44k", 157.41, 1280),
        ("mmaudio-medium-44k", 621.8, 2560),
        ("mmaudio-large-44k", 1030.0, 2560),
        ("mmaudio-large-44k-v2", 1030.6, 2560),
    ],
)
def test_parameter_counts_are_the_published_ones(name: str, millions: float, hidden: int) -> None:
    config = mmaudio(name)
    frozen = 77 * 1024 + 2 * config.channels  # parameters there, buffers here
    total = sum(family_of(config).parameter_counts().values()) + frozen
    assert total / 1e6 == pytest.approx(millions, rel=1e-3)
    assert config.hidden == hidden
    assert config.head_dim == 64


@pytest.mark.parametrize(
    ("name", "seconds", "lengths"),
    [
        ("mmaudio-small-16k", 8, {"audio": 250, "clip": 64, "text": 77, "sync": 192}),
        ("mmaudio-large-44k", 8, {"audio": 345, "clip": 64, "text": 77, "sync": 192}),
        ("mmaudio-small-16k", 5, {"audio": 157, "clip": 40, "text": 77, "sync": 112}),
        ("mmaudio-small-16k", 0.8, {"audio": 25, "clip": 6, "text": 77, "sync": 8}),
        ("mmaudio-small-16k", 7.99, {"audio": 250, "clip": 63, "text": 77, "sync": 184}),
    ],
)
def test_lengths_follow_the_duration(name: str, seconds: float, lengths: dict[str, int]) -> None:
    assert mmaudio(name).lengths(seconds) == lengths


def test_waveform_covers_whole_latents() -> None:
    assert (GRID_16K.samples(250), GRID_44K.samples(345)) == (128_000, 353_280)
    assert (float(GRID_16K.rate), round(float(GRID_44K.rate), 3)) == (31.25, 43.066)


@pytest.mark.parametrize("seconds", [0.1, 0.63])
def test_duration_below_one_segment_is_one_line(seconds: float) -> None:
    with pytest.raises(UserError, match=r"shorter than one token|a segment needs 16"):
        mmaudio("mmaudio-small-16k").lengths(seconds)


def test_unknown_sizes_list_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown model 'mmaudio-huge'"):
        mmaudio("mmaudio-huge")
    with pytest.raises(UserError, match="unknown model 'omni'"):
        audiogen_omni("omni")


@pytest.mark.parametrize("name", AUDIOGEN_OMNI)
def test_audiogen_streams_are_modulated_by_the_others(name: str) -> None:
    config = audiogen_omni(name)
    assert config.frame is not None
    pools = {stream.name: set(stream.pools_into) for stream in config.streams}
    assert pools == {"clip": {"audio", "text"}, "transcript": {"audio", "clip"}, "caption": {"audio", "clip"}}
    assert set(config.frame.pools_into) == {"audio", "text"}
    assert [stream.name for stream in config.blocks["text"]] == ["transcript", "caption"]
    assert all(stream.empty == "learned" for stream in config.streams)


def test_undisclosed_values_say_so() -> None:
    assert "ndisclosed" in (audiogen_omni.__doc__ or "")
    assert MMDiTConfig.model_validate(small_audiogen().model_dump()) == small_audiogen()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "even whole number"),
        ({"time_width": 7}, "time_width must be even"),
        ({"streams": small_mmaudio().streams * 2}, "each name must differ"),
        (
            {"streams": (small_mmaudio().streams[0].model_copy(update={"pools_into": ("vocals",)}),)},
            "no block vocals",
        ),
        (
            {
                "streams": (
                    small_mmaudio().streams[0].model_copy(update={"empty": "frozen", "pools_into": ()}),
                )
            },
            "needs a fixed number of tokens",
        ),
        (
            {"streams": changed(small_mmaudio().streams, block="text", pools_into=())},
            "share the block text",
        ),
        (
            {
                "streams": changed(small_audiogen().streams[1:2], pools_into=()),
                "frame": None,
                "transcript": None,
            },
            "name the encoder",
        ),
    ],
)
def test_configuration_faults_name_the_field(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        small_mmaudio(**change)
