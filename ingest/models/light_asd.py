"""Active speaker detection by Light-ASD (Liao et al. 2023, "A Light Weight Model for Active Speaker
Detection", CVPR).

The network follows the published state dict: keys and shapes of `finetuning_TalkSet.model` load strictly. Its
score is a logit, positive for speaking. On planted and real faces it separates speaking mouths from resting
ones reliably and from chewing ones mostly, but hardly depends on whose voice is heard: where two faces move
their mouths, the embedded model (`active_speaker`) separates them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from uniavgen.ingest.models.published_networks import (
    CROP_PX,
    MFCC_HZ,
    NETWORK_FPS,
    face_crops,
    load_published,
    mfcc,
)

FEATURES = 128
MEAN, STD = 0.4161, 0.1688
"""Mean and standard deviation of the brightness 0..1 in training."""

FACE_PX = 112
"""Side of the crop's centre, nose to chin, which is the input of the network."""


class LightAsd:
    """The network with its weights. Raises UserError (missing-weights, wrong-weights)."""

    def __init__(self, weights: str, device: str = "cpu") -> None:
        self.device = torch.device(device)
        network = Network()
        load_published(network, weights, "sync.light_asd_weights")
        self._network = network.eval().to(self.device)

    def score_faces(
        self, frames: np.ndarray, boxes: Mapping[int, np.ndarray], pcm: np.ndarray
    ) -> dict[int, float]:
        """Confidence 0..1 by track that a face of a clip speaks. Faces seen in under half of it are left out.

        `frames` uint8 [T, H, W, 3] RGB at 25 fps; `boxes` of each track float [T, 4] in fractions of the
        frame, NaN where it is not seen; `pcm` int16 at 16 kHz of the same span, without margins.
        """
        return {
            track: speaking_confidence(self.scores(frames, box, pcm))
            for track, box in boxes.items()
            if np.isfinite(box).all(axis=1).mean() >= 0.5
        }

    def scores(self, frames: np.ndarray, boxes: np.ndarray, pcm: np.ndarray) -> np.ndarray:
        """The network's logit for one face in every frame: float32 [T]; positive means speaking."""
        grey = face_crops(frames, boxes).astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        first = (CROP_PX - FACE_PX) // 2
        faces = grey[:, first : first + FACE_PX, first : first + FACE_PX]
        mfccs = mfcc(pcm)
        steps = MFCC_HZ // NETWORK_FPS
        count = min(len(faces), len(mfccs) // steps)
        with torch.inference_mode():
            face_input = torch.from_numpy(faces[:count]).to(self.device)[None]
            mfcc_input = torch.from_numpy(mfccs[: count * steps]).to(self.device)[None]
            logits: np.ndarray = self._network(mfcc_input, face_input)[0].cpu().numpy()
        return np.pad(logits, (0, len(faces) - count), mode="edge")


def speaking_confidence(scores: np.ndarray) -> float:
    """Confidence 0..1 of a clip: the mean probability of speaking over the more likely half of its frames
    (speakers pause).
    """
    probability = 1 / (1 + np.exp(-scores.astype(np.float64)))
    return float(np.sort(probability)[len(probability) // 2 :].mean())


class Network(nn.Module):
    """Video and audio encoder, their sum, a GRU in each direction, a classifier.

    `lossV` is only used in training and kept so that the checkpoint loads strictly.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "visualEncoder": VisualEncoder(),
                "audioEncoder": AudioEncoder(),
                "GRU": BidirectionalGru(FEATURES),
            }
        )
        self.lossAV = Classifier()
        self.lossV = Classifier()

    def forward(self, mfccs: Tensor, faces: Tensor) -> Tensor:
        """Logits [B, T] from MFCCs [B, 4 T, 13] and grey faces 0..255 [B, T, 112, 112]."""
        audio = self.model["audioEncoder"](mfccs[:, None].transpose(2, 3))
        video = self.model["visualEncoder"](((faces / 255 - MEAN) / STD)[:, None])
        score: Tensor = self.lossAV(self.model["GRU"](audio + video))[..., 1]
        return score


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.FC = nn.Linear(FEATURES, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.FC(x)
        return logits


class BidirectionalGru(nn.Module):
    """A GRU forwards, then one backwards over its result: [B, T, C] to [B, T, C]."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.gru_forward = nn.GRU(features, features, batch_first=True)
        self.gru_backward = nn.GRU(features, features, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        reversed_x = nn.functional.gelu(self.gru_forward(x)[0]).flip(1)
        return nn.functional.gelu(self.gru_backward(reversed_x)[0].flip(1))


class VisualBlock(nn.Module):
    """Two paths with kernels 3 and 5, each over space and then over time; summed and mixed. [B, C, T, H,
    W].
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        for size in (3, 5):
            pad = size // 2
            spatial = nn.Conv3d(
                channels_in, channels_out, (1, size, size), (1, stride, stride), (0, pad, pad), bias=False
            )
            temporal = nn.Conv3d(channels_out, channels_out, (size, 1, 1), padding=(pad, 0, 0), bias=False)
            _register(
                self, {f"s_{size}": spatial, f"t_{size}": temporal}, nn.BatchNorm3d(channels_out, eps=1e-3)
            )
        _register(
            self,
            {"last": nn.Conv3d(channels_out, channels_out, 1, bias=False)},
            nn.BatchNorm3d(channels_out, eps=1e-3),
        )

    def forward(self, x: Tensor) -> Tensor:
        return _two_paths(self, x, "s")


class AudioBlock(nn.Module):
    """The same over the cepstral axis and then over time. [B, C, 13, T]."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        for size in (3, 5):
            cepstral = nn.Conv2d(channels_in, channels_out, (size, 1), padding=(size // 2, 0), bias=False)
            temporal = nn.Conv2d(channels_out, channels_out, (1, size), padding=(0, size // 2), bias=False)
            _register(
                self, {f"m_{size}": cepstral, f"t_{size}": temporal}, nn.BatchNorm2d(channels_out, eps=1e-3)
            )
        _register(
            self,
            {"last": nn.Conv2d(channels_out, channels_out, 1, bias=False)},
            nn.BatchNorm2d(channels_out, eps=1e-3),
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
        x = _pool(self.block2(_pool(self.block1(x))))
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


def _pool(x: Tensor) -> Tensor:
    return nn.functional.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))


def _register(block: nn.Module, layers: Mapping[str, nn.Module], norm: nn.Module) -> None:
    """Add layers under their published names, each with its own batch norm."""
    for name, layer in layers.items():
        block.add_module(name, layer)
        block.add_module(f"bn_{name}", type(norm)(norm.num_features, eps=norm.eps))


def _two_paths(block: nn.Module, x: Tensor, first: str) -> Tensor:
    def layer(name: str, x: Tensor) -> Tensor:
        return torch.relu(block.get_submodule(f"bn_{name}")(block.get_submodule(name)(x)))

    return layer("last", layer("t_3", layer(f"{first}_3", x)) + layer("t_5", layer(f"{first}_5", x)))
