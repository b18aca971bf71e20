"""Published checkpoints of networks that are written here: read without running code in them, and loaded strictly."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import nn

from uniavgen.shards.errors import UserError


def load_published(network: nn.Module, path: str, setting: str) -> None:
    """Fill a network from a checkpoint that the user names in `setting`.

    Raises UserError: missing-weights where there is no file, wrong-weights where it is not this network's.
    """
    if not Path(path).is_file():
        raise UserError(
            "the named weights are not there",
            where=path or "no path",
            hint=f"set {setting} to the file",
            kind="missing-weights",
        )
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
    ) as error:
        raise UserError(
            "the file does not hold this network's weights",
            where=path,
            hint=f"name the published file in {setting}",
            kind="wrong-weights",
        ) from error
