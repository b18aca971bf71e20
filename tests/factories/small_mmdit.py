"""Small video-to-audio transformers and batches for tests."""

import torch
from torch import Tensor

from uniavgen.train.model.mmdit.batch import Conditions, SoundBatch
from uniavgen.train.model.mmdit.config import SYNC, FrameConfig, MMDiTConfig, audiogen_omni, mmaudio
from uniavgen.train.model.mmdit.network import MMDiT

LATENTS = 25
"""0.8 s at 31.25 Hz: 6 clip tokens at 8 Hz, 8 synchronisation features."""


def small_mmaudio(**changes: object) -> MMDiTConfig:
    """MMAudio's structure at width 16, with narrow inputs."""
    config = mmaudio("mmaudio-small-16k")
    streams = tuple(stream.model_copy(update={"channels": 6, "tokens": 5}) for stream in config.streams)
    update = {
        "dim": 16,
        "heads": 2,
        "joint_layers": 2,
        "audio_layers": 2,
        "mlp_multiple": 8,
        "channels": 3,
        "time_width": 8,
        "streams": streams,
        "frame": FrameConfig(channels=5, segment=4),
    }
    return MMDiTConfig.model_validate(config.model_copy(update=update | changes).model_dump())


def small_audiogen(**changes: object) -> MMDiTConfig:
    """AudioGen-Omni's structure at width 16."""
    config = audiogen_omni("audiogen-omni-tiny")
    assert config.transcript is not None
    encoder = config.transcript.model_copy(update={"dim": 12, "layers": 1})
    widths = {"clip": 6, "transcript": 12, "caption": 7}
    streams = tuple(
        stream.model_copy(update={"channels": widths[stream.name], "tokens": 5}) for stream in config.streams
    )
    frame = config.frame
    assert frame is not None
    update = {
        "dim": 16,
        "heads": 2,
        "mlp_multiple": 8,
        "channels": 3,
        "time_width": 8,
        "streams": streams,
        "frame": frame.model_copy(update={"channels": 5, "segment": 4}),
        "transcript": encoder,
    }
    return MMDiTConfig.model_validate(config.model_copy(update=update | changes).model_dump())


def filled(config: MMDiTConfig, seed: int = 0) -> MMDiT:
    """A model whose weights are all random, also those that start at zero."""
    torch.manual_seed(seed)
    model = MMDiT(config)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name == "scale.std":
                value.uniform_(0.5, 2)
            elif "norm.weight" in name:
                value.uniform_(0.5, 1.5)
            else:
                value.normal_(std=0.25)
    return model


def made_conditions(
    config: MMDiTConfig, samples: int = 2, latents: int = LATENTS, seed: int = 1
) -> Conditions:
    """Random features for every input of a model."""
    generator = torch.Generator().manual_seed(seed)
    inputs: dict[str, Tensor] = {}
    for stream in config.streams:
        length = config.length(stream, config.grid.seconds(latents))
        if stream.ids:
            inputs[stream.name] = torch.randint(0, 300, (samples, length), generator=generator)
        else:
            inputs[stream.name] = torch.randn(samples, length, stream.channels, generator=generator)
    if config.frame:
        length = config.frame.length(config.grid.seconds(latents))
        inputs[SYNC] = torch.randn(samples, length, config.frame.channels, generator=generator)
    return Conditions(inputs, {}, {})


def made_batch(config: MMDiTConfig, samples: int = 2, latents: int = LATENTS, seed: int = 1) -> SoundBatch:
    """Random latents and every input."""
    generator = torch.Generator().manual_seed(seed + 1000)
    latent = torch.randn(samples, config.channels, latents, generator=generator)
    return SoundBatch(
        [f"clip-{i}" for i in range(samples)], latent, made_conditions(config, samples, latents, seed)
    )
