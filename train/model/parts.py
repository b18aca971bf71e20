"""Parts of a model, by the names of its parameters: a part is the first component of a name. Imports no
torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def is_under(name: str, prefixes: Sequence[str]) -> bool:
    """Whether a parameter's name lies under one of the dotted prefixes."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: the first component of its name."""
    return name.split(".", 1)[0]


def train_only(model: nn.Module, prefixes: Sequence[str]) -> list[str]:
    """Train only the parameters under `prefixes` (all if empty); returns prefixes that match nothing."""
    names = [name for name, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not prefixes or is_under(name, prefixes))
    return [prefix for prefix in prefixes if not any(is_under(name, [prefix]) for name in names)]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Parameters by part, and their `total`."""
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    return counts | {"total": sum(counts.values())}
