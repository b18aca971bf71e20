"""dlib's face recognition network (`dlib_face_recognition_resnet_model_v1.dat`, CC0) in PyTorch.

dlib's package is compiled without a BLAS: there one face takes eight times the CPU time. The embeddings agree
to 1e-6 per element. Architecture: dlib's example `dnn_face_recognition_ex.cpp`, a ResNet of 29 convolutions,
whose normalisations are folded into the convolutions here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.shards.errors import UserError

LAYER = re.compile(rb"con_4|affine_|avg_pool_2\x01\x02|fc_2.{5}", re.DOTALL)
"""Serialized start of a convolution, of a normalisation, of the 2 x 2 pooling in a block that halves the
size, and of the last layer with its sizes."""

MEAN_RGB = (122.782, 117.001, 104.298)
"""Mean colour that dlib subtracts before it divides by 256."""

CHANNELS = (32,) * 7 + (64,) * 8 + (128,) * 6 + (256,) * 8
"""Output channels of the convolutions, in order; the first is 7 x 7, the others 3 x 3."""


@dataclass(frozen=True)
class _Convolution:
    weight: Any
    bias: Any
    halves: bool


class DlibNetwork:
    """The network on one thread pool of PyTorch. Raises UserError (wrong-weights) for another file."""

    def __init__(self, path: Path) -> None:
        import torch

        try:
            layers, last = _read_layers(path.read_bytes())
        except (ValueError, IndexError) as error:
            raise UserError(
                "this is not dlib's face recognition network", where=path, kind="wrong-weights"
            ) from error
        self._layers = [
            _Convolution(torch.from_numpy(weight), torch.from_numpy(bias), halves)
            for weight, bias, halves in layers
        ]
        self._last = torch.from_numpy(last)
        self._mean = torch.tensor(MEAN_RGB)[None, :, None, None]

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Embeddings float32 [n, 128], not scaled, of aligned faces uint8 [n, 150, 150, 3] RGB."""
        import torch
        from torch.nn import functional as F

        with torch.inference_mode():
            x = (torch.from_numpy(faces).permute(0, 3, 1, 2).float() - self._mean) / 256
            first, *blocks = self._layers
            x = F.max_pool2d(F.relu(F.conv2d(x, first.weight, first.bias, stride=2)), 3, 2)
            for one, two in zip(blocks[::2], blocks[1::2], strict=True):
                x = _block(x, one, two)
            embedded: np.ndarray = (x.mean(dim=(2, 3)) @ self._last).numpy()
        return embedded


def _block(x: Any, one: _Convolution, two: _Convolution) -> Any:
    """A residual block. dlib adds tensors of different sizes as if the smaller were padded with zeros."""
    from torch.nn import functional as F

    stride, padding = (2, 0) if one.halves else (1, 1)
    y = F.relu(F.conv2d(x, one.weight, one.bias, stride=stride, padding=padding))
    y = F.conv2d(y, two.weight, two.bias, padding=1)
    shortcut = F.avg_pool2d(x, 2, 2) if one.halves else x
    channels, height, width = (max(a, b) for a, b in zip(y.shape[1:], shortcut.shape[1:], strict=True))
    y, shortcut = (
        F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2], 0, channels - part.shape[1]))
        for part in (y, shortcut)
    )
    return F.relu(y + shortcut)


def _read_layers(data: bytes) -> tuple[list[tuple[np.ndarray, np.ndarray, bool]], np.ndarray]:
    """(weight, bias, whether its block halves the size) of each convolution; the last matrix [256, 128]."""
    layers: list[tuple[np.ndarray, np.ndarray, bool]] = []
    last = np.zeros(0, np.float32)
    position = 0
    while match := LAYER.search(data, position):
        name, position = match[0][:4], match.end()
        if name == b"avg_":  # it follows both convolutions of its block
            layers[-2] = (*layers[-2][:2], True)
        elif name == b"con_":
            values, position = _read_tensor(data, position)
            outputs, inputs, side = CHANNELS[len(layers)], ([3, *CHANNELS])[len(layers)], 3 if layers else 7
            weight, bias = np.split(values, [outputs * inputs * side**2])
            layers.append((weight.reshape(outputs, inputs, side, side), bias.reshape(outputs), False))
        elif name == b"affi":
            weight, bias, halves = layers[-1]
            values, position = _read_tensor(data, position)
            gamma, beta = values.reshape(2, len(bias))
            layers[-1] = (weight * gamma[:, None, None, None], bias * gamma + beta, halves)
        else:
            last, position = _read_tensor(data, position)
    if len(layers) != len(CHANNELS):
        raise ValueError(f"{len(layers)} convolutions")
    return layers, last.reshape(CHANNELS[-1], -1)


def _read_tensor(data: bytes, position: int) -> tuple[np.ndarray, int]:
    """A tensor of dlib's format 2 as float32 [n], and the position after it."""
    numbers = []
    for _ in range(5):  # the format, and four dimensions
        size = data[position]
        numbers.append(int.from_bytes(data[position + 1 : position + 1 + size], "little"))
        position += 1 + size
    count = int(np.prod(numbers[1:]))
    if numbers[0] != 2:
        raise ValueError(f"tensor format {numbers[0]}")
    return np.frombuffer(data, "<f4", count, position).copy(), position + 4 * count
