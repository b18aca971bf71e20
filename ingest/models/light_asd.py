"""Which face speaks, by Light-ASD (Liao et al. 2023, "A Light Weight Model for Active Speaker Detection", CVPR).

Goes in: pictures at 25 fps, the boxes of every face, and the sound of the same span. Comes out: an `ActiveFace`. The network
is written to the published state dict: keys and shapes of `finetuning_TalkSet.model` load strictly. Its score is a logit,
positive where it sees speaking. On planted and real faces it tells speaking mouths from resting ones surely and from chewing
ones mostly, and hardly minds whose voice is heard: where two faces move their mouths, the embedded measure tells them apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from uniavgen.ingest.models.active_speaker import ActiveFace, choose_face
from uniavgen.ingest.models.published_networks import (
    CROP_PX,
    MFCC_HZ,
    NETWORK_FPS,
    face_crops,
    load_published,
    mfcc,
)

FEATURES = 128
MEAN, SPREAD = 0.4161, 0.1688
"""Brightness that the network was trained with, of 0..1."""

FACE_PX = 112
"""The middle of the crop, nose to chin, is what it sees."""


class LightAsd:
    """The network with its weights. Raises UserError (missing-weights, wrong-weights) where they are absent or not its own."""

    def __init__(self, weights: str, device: str = "cpu") -> None:
        self.device = torch.device(device)
        network = Network()
        load_published(network, weights, "sync.light_asd_weights")
        self._network = network.eval().to(self.device)

    def find_active_face(
        self,
        pictures: np.ndarray,
        boxes: Mapping[int, np.ndarray],
        pcm: np.ndarray,
        largest: int | None = None,
    ) -> ActiveFace:
        """Which face speaks in a clip.

        `pictures` uint8 [T, H, W, 3] RGB at 25 fps; `boxes` of each track float [T, 4] in fractions of the picture, NaN where
        it is not seen; `pcm` int16 at 16 kHz of the same span, without margins.
        """
        fits = {}
        for track, box in boxes.items():
            if np.isfinite(box).all(axis=1).mean() >= 0.5:
                fits[track] = speaking_confidence(self.scores(pictures, box, pcm))
        return choose_face(fits, largest)

    def scores(self, pictures: np.ndarray, boxes: np.ndarray, pcm: np.ndarray) -> np.ndarray:
        """The published score of one face in every picture, a logit: float32 [T]; positive speaks."""
        grey = face_crops(pictures, boxes).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        first = (CROP_PX - FACE_PX) // 2
        faces = grey[:, first : first + FACE_PX, first : first + FACE_PX]
        sound = mfcc(pcm)
        steps = MFCC_HZ // NETWORK_FPS
        count = min(len(faces), len(sound) // steps)
        with torch.inference_mode():
            seen = torch.from_numpy(faces[:count]).to(self.device)[None]
            heard = torch.from_numpy(sound[: count * steps]).to(self.device)[None]
            logits: np.ndarray = self._network(heard, seen)[0].cpu().numpy()
        return np.pad(logits, (0, len(faces) - count), mode="edge")


def speaking_confidence(scores: np.ndarray) -> float:
    """Confidence 0..1 from the scores of a clip's frames: the mean probability of speaking over the likelier half of them,
    for a speaker pauses."""
    probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
    return float(np.sort(probability)[len(probability) // 2 :].mean())


class Network(nn.Module):
    """Two encoders, added, a recurrent pass each way, a classifier; `lossV` of training is kept so that the file loads."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {"visualEncoder": VisualEncoder(), "audioEncoder": AudioEncoder(), "GRU": TwoWay(FEATURES)}
        )
        self.lossAV = Classifier()
        self.lossV = Classifier()

    def forward(self, heard: Tensor, seen: Tensor) -> Tensor:
        """Score [B, T] from MFCCs [B, 4 T, 13] and grey faces 0..255 [B, T, 112, 112]."""
        sound = self.model["audioEncoder"](heard[:, None].transpose(2, 3))
        sight = self.model["visualEncoder"](((seen / 255 - MEAN) / SPREAD)[:, None])
        score: Tensor = self.lossAV(self.model["GRU"](sound + sight))[..., 1]
        return score


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.FC = nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.FC(x)
        return logits


class TwoWay(nn.Module):
    """A pass forwards, then one backwards over its result: [B, T, C] to [B, T, C]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gru_forward = nn.GRU(features, features, batch_first=True)
        self.gru_backward = nn.GRU(features, features, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        ahead = nn.functional.gelu(self.gru_forward(x)[0]).flip(1)
        return nn.functional.gelu(self.gru_backward(ahead)[0].flip(1))


class VisualBlock(nn.Module):
    """Two paths of kernel 3 and 5, each across the picture and then along time; added and mixed. [B, C, T, H, W]."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__()
        for size in (3, 5):
            pad = size // 2
            across = nn.Conv3d(
                inside, outside, (1, size, size), (1, stride, stride), (0, pad, pad), bias=False
            )
            along = nn.Conv3d(outside, outside, (size, 1, 1), padding=(pad, 0, 0), bias=False)
            _register(self, {f"s_{size}": across, f"t_{size}": along}, nn.BatchNorm3d(outside, eps=1e-3))
        _register(
            self, {"last": nn.Conv3d(outside, outside, 1, bias=False)}, nn.BatchNorm3d(outside, eps=1e-3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return _two_paths(self, x, "s")


class AudioBlock(nn.Module):
    """The same along the cepstral axis and then along time. [B, C, 13, T]."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        for size in (3, 5):
            across = nn.Conv2d(inside, outside, (size, 1), padding=(size // 2, 0), bias=False)
            along = nn.Conv2d(outside, outside, (1, size), padding=(0, size // 2), bias=False)
            _register(self, {f"m_{size}": across, f"t_{size}": along}, nn.BatchNorm2d(outside, eps=1e-3))
        _register(
            self, {"last": nn.Conv2d(outside, outside, 1, bias=False)}, nn.BatchNorm2d(outside, eps=1e-3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return _two_paths(self, x, "m")


class VisualEncoder(nn.Module):
    """Grey faces [B, 1, T, 112, 112] to [B, T, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = (
            VisualBlock(1, 32, 2),
            VisualBlock(32, 64),
            VisualBlock(64, FEATURES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = _shrink(self.block2(_shrink(self.block1(x))))
        deepest: Tensor = self.block3(x)
        return deepest.amax(dim=(3, 4)).transpose(1, 2)


class AudioEncoder(nn.Module):
    """MFCCs [B, 1, 13, 4 T] to [B, T, 128]."""

    def __init__(self) -> None:
        super().__init__()
        self.block1, self.block2, self.block3 = (
            AudioBlock(1, 32),
            AudioBlock(32, 64),
            AudioBlock(64, FEATURES),
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block1, self.block2):
            x = nn.functional.max_pool2d(block(x), (1, 3), (1, 2), (0, 1))
        deepest: Tensor = self.block3(x)
        return deepest.mean(dim=2).transpose(1, 2)


def _shrink(x: Tensor) -> Tensor:
    return nn.functional.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))


def _register(block: nn.Module, layers: Mapping[str, nn.Module], norm: nn.Module) -> None:
    """Layers under their published names, each with a normalisation of its own."""
    for name, layer in layers.items():
        block.add_module(name, layer)
        block.add_module(f"bn_{name}", type(norm)(norm.num_features, eps=norm.eps))


def _two_paths(block: nn.Module, x: Tensor, across: str) -> Tensor:
    def layer(name: str, x: Tensor) -> Tensor:
        return torch.relu(block.get_submodule(f"bn_{name}")(block.get_submodule(name)(x)))

    return layer("last", layer("t_3", layer(f"{across}_3", x)) + layer("t_5", layer(f"{across}_5", x)))
