"""Flow matching: the straight path between data and noise, its velocity, the masked loss, and the draws of a
step.

t = 0 is data and t = 1 is noise, as in Wan. Every draw (task, diffusion time, noise, decisions) is a pure
function of (seed, step, sample index) and made on the CPU, so a run sees the same draws on any number of
ranks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from uniavgen.train.tasks import Task
from uniavgen.train.timestep_config import TimestepConfig, shift_time


@dataclass(frozen=True)
class Draw:
    """All that the randomness of a micro-step depends on: never the rank, never the number of ranks.

    `sample_indices`: the index of every sample of this micro-batch in the global batch of the step.
    """

    seed: int
    step: int
    sample_indices: tuple[int, ...]


def generator_for(*names: object) -> torch.Generator:
    """A CPU generator seeded by nothing but `names` (seed, step, sample index, purpose)."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def noise_for(
    seed: int, step: int, sample_index: int, shape: Sequence[int], purpose: str = "noise"
) -> Tensor:
    """Standard normal noise of one sample: fp32 `shape`, on the CPU."""
    return torch.randn(tuple(shape), generator=generator_for(seed, step, sample_index, purpose))


def uniform_for(seed: int, step: int, sample_index: int, purpose: str) -> float:
    """One number in [0, 1) for the decision `purpose` about one sample."""
    generator = generator_for(seed, step, sample_index, purpose)
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def timestep_for(
    seed: int,
    step: int,
    sample_index: int,
    config: TimestepConfig,
    purpose: str = "timestep",
    tokens: int = 0,
) -> float:
    """Diffusion time in 0..1 (1 is noise) of one sample of so many tokens, from the distribution of `config`.

    Distributions that differ in their shift alone give times of one draw.
    """
    generator = generator_for(seed, step, sample_index, purpose)
    if config.distribution == "logit-normal":
        normal = torch.randn((), generator=generator, dtype=torch.float64)
        return float(torch.sigmoid(config.mean + config.std * normal))
    u = float(torch.rand((), generator=generator, dtype=torch.float64))
    return shift_time(u, config.shift_at(tokens)) if config.distribution == "shifted" else u


def task_at(seed: int, draw: int, mix: dict[Task, int]) -> Task:
    """Task of micro-step `draw`: each window of sum(mix) draws has every task exactly as often as in `mix`.

    Smooth weighted round robin, so shorter windows are even too. The seed rotates the cycle and breaks ties.
    """
    cycle = _task_cycle(seed, tuple((task, mix[task]) for task in Task if mix.get(task)))
    return cycle[draw % len(cycle)]


def voice_is_used(task: Task, seed: int, step: int, dubbing_reference: float) -> bool:
    """Whether a step of this task uses a reference voice, the same for all its samples.

    `dubbing_reference`: share of steps with one where the task makes it optional.
    """
    if task.spec.reference_voice == "optional":
        return uniform_for(seed, step, -1, "dubbing-reference") < dubbing_reference
    return task.spec.reference_voice == "required"


@lru_cache(maxsize=32)
def _task_cycle(seed: int, mix: tuple[tuple[Task, int], ...]) -> tuple[Task, ...]:
    generator = generator_for(seed, "task-cycle")
    mix = tuple(mix[i] for i in torch.randperm(len(mix), generator=generator).tolist())
    period = sum(count for _, count in mix)
    credit, cycle = dict.fromkeys((task for task, _ in mix), 0), []
    for _ in range(period):
        for task, count in mix:
            credit[task] += count
        chosen = max(credit, key=lambda task: credit[task])
        credit[chosen] -= period
        cycle.append(chosen)
    rotation = int(torch.randint(period, (), generator=generator))
    return tuple(cycle[rotation:] + cycle[:rotation])


def mix(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x_0 + t noise; t [B], the others [B, ...]."""
    t = t.view(-1, *[1] * (data.dim() - 1)).to(data.dtype)
    return (1 - t) * data + t * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """The target dx/dt = noise - x_0."""
    return noise - data


def bounded_weight(t: Tensor, bound: float | None) -> Tensor:
    """Factor [B] of velocity losses at times t [B] under which an x0 error weighs at most `bound`.

    |v - v'|^2 = |x0 - x0'|^2 / t^2, so min(1 / t^2, bound) of the latter is min(1, bound t^2) of the former.
    """
    return torch.ones_like(t) if bound is None else (bound * t.square()).clamp(max=1)


def velocity_loss(predicted: Tensor, target: Tensor, scored: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of every sample over its scored frames: [B], 0 where none is scored.

    predicted, target [B, c, N, ...]; scored bool [N], or [B, N] if samples differ; weight [B, 1, N, ...]
    makes it a weighted mean. Frames that are not scored get no gradient, whatever they hold.
    """
    rows = scored if scored.dim() == 2 else scored[None]
    keep = rows.view(len(rows), 1, -1, *[1] * (target.dim() - 3))
    error = torch.where(keep, predicted.float() - target.float(), 0.0).square()
    if weight is not None:
        weight = torch.where(keep, weight.float(), 0.0)
        total = weight.flatten(1).sum(1) * target.shape[1]
        return (error * weight).flatten(1).sum(1) / total.clamp(min=1)
    per_frame = target[0].numel() // target.shape[2]
    return error.flatten(1).sum(1) / (rows.sum(1) * per_frame).clamp(min=1)
