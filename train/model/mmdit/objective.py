"""Loss and sampler of the video-to-audio transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train import flow_matching
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.mmdit.batch import Conditions, SoundBatch
from uniavgen.train.model.mmdit.config import SYNC, MMDiTConfig
from uniavgen.train.model.mmdit.network import MMDiT
from uniavgen.train.model.mmdit.recipe import DROP_GROUPS, SoundObjectiveConfig, SoundSamplingConfig
from uniavgen.train.sampling import time_grid


class MMDiTObjective:
    """The loss of one stage (`train.model.family.Objective`)."""

    def __init__(
        self, config: SoundObjectiveConfig, model: MMDiTConfig, *, checkpointing: bool = False
    ) -> None:
        self.config, self.model, self.checkpointing = config, model, checkpointing

    def weights(self, progress: float) -> dict[str, float]:
        """No weight is scheduled."""
        return {}

    def losses(
        self,
        model: Callable[..., Tensor],
        batch: SoundBatch,
        task: object,
        draw: Draw,
        weights: Mapping[str, float],
        details: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """`total` and `audio`, which are equal; `task` is not read: a batch says which inputs it has.

        `model`: an `MMDiT`, or an engine whose `module` is one. `details` receives `audio` and
        `audio_time` of each sample [B], and `tokens`.
        """
        network: MMDiT = getattr(model, "module", model)  # type: ignore[arg-type]
        data = network.scale.normalise(batch.latent)
        conditions = batch.conditions.without(drops_for(self.config, self.model, draw))
        times = [
            flow_matching.timestep_for(draw.seed, draw.step, i, self.config.timestep, "audio-timestep")
            for i in draw.sample_indices
        ]
        noise = torch.stack(
            [
                flow_matching.noise_for(draw.seed, draw.step, i, data.shape[1:], "audio-noise")
                for i in draw.sample_indices
            ]
        ).to(data)
        t = torch.tensor(times, dtype=torch.float32, device=data.device)
        noisy = flow_matching.mix(data, noise, t)
        predicted = model(noisy, t, conditions, checkpointing=self.checkpointing)
        error = (predicted.float() - flow_matching.velocity(data, noise).float()).square()
        per_sample = error.flatten(1).mean(dim=1)
        if details is not None:
            tokens = torch.tensor(data.shape[0] * data.shape[2])
            details |= {"audio": per_sample, "audio_time": t, "tokens": tokens}
        loss = per_sample.mean()
        return {"total": loss, "audio": loss}


def drops_for(config: SoundObjectiveConfig, model: MMDiTConfig, draw: Draw) -> dict[str, tuple[bool, ...]]:
    """Which inputs of each sample are dropped: one independent draw for each group, and one for all."""
    names = input_names(model)
    everything = _drawn(draw, "all", config.joint_dropout)
    drops = dict.fromkeys(names, everything)
    for group, share in config.dropout.items():
        dropped = _drawn(draw, group, share)
        for name in names:
            if name in DROP_GROUPS[group]:
                drops[name] = tuple(a or b for a, b in zip(dropped, everything, strict=True))
    return drops


def _drawn(draw: Draw, group: str, share: float) -> tuple[bool, ...]:
    return tuple(
        flow_matching.uniform_for(draw.seed, draw.step, i, f"{group}-dropout") < share
        for i in draw.sample_indices
    )


def input_names(model: MMDiTConfig) -> list[str]:
    """Names of all inputs beside audio."""
    return [stream.name for stream in model.streams] + ([SYNC] if model.frame else [])


@torch.no_grad()
def sample_latents(
    model: MMDiT,
    conditions: Conditions,
    latents: int,
    config: SoundSamplingConfig,
    *,
    samples: int = 1,
    seed: int = 0,
    negative: Conditions | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Audio latents [B, C, N] as the VAE decodes them, from noise of `seed`.

    Conditions are encoded once. `negative`: conditions of the pass that guidance moves away from, such as a
    negative text; None: no input at all. Raises UserError if no sample has an input.
    """
    names = input_names(model.config)
    if not any(any(conditions.has(name, samples)) for name in names):
        raise UserError(
            "nothing to make sound for: no input is given",
            hint=f"give one of {', '.join(names)}",
            kind="no-condition",
        )
    if config.negative_text and negative is None:
        raise UserError(
            f"negative_text {config.negative_text!r} is not encoded: pass its features as `negative`",
            kind="not-encoded",
        )
    noise = [flow_matching.noise_for(seed, 0, i, (model.config.channels, latents)) for i in range(samples)]
    x = torch.stack(noise).to(device)
    given = model.encode(conditions, samples, latents, device)
    guided = config.guidance > 1
    absent = model.encode(negative or Conditions({}, {}, {}), samples, latents, device) if guided else None
    for step, (now, after) in enumerate(pairwise(time_grid(config.steps, 1.0))):
        t = torch.full((samples,), now, device=device)
        u = model.velocity(x, t, given).float()
        if absent is not None:
            u0 = model.velocity(x, t, absent).float()
            u = u0 + config.guidance * (u - u0)
        x = x + (after - now) * u
        if on_step is not None:
            on_step(step + 1, config.steps)
    return model.scale.denormalise(x)
