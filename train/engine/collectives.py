"""Collective calls over the ranks of torch.distributed. All ranks call each function."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
import torch.distributed as dist

from uniavgen.shards.errors import UserError


def all_gather_object(value: Any) -> list[Any]:
    """The values of all ranks, in the order of ranks."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def assert_same_on_all_ranks(what: str, value: Any) -> None:
    """Raise UserError on all ranks if one has another `value` (compared as JSON).

    It happens when a node has its own folder at the path of shared storage.
    """
    digests = all_gather_object(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest())
    others = [rank for rank, digest in enumerate(digests) if digest != digests[0]]
    if others:
        raise UserError(
            f"rank {others[0]} sees different {what} than rank 0",
            hint="use shared storage",
            kind="not-shared",
        )


def all_reduce_sum(values: list[float]) -> list[float]:
    """Sums over ranks of a list with the same length on all ranks."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    sums: list[float] = tensor.tolist()
    return sums
