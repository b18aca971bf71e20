"""Lip sync by SyncNet (Chung and Zisserman 2016, "Out of time: automated lip sync in the wild"), with its published weights.

Goes in: pictures at 25 fps, the box of one face, and the sound. Comes out: a `LipSync` with SyncNet's own two scores beside it.
The network is written to the published state dict (`syncnet_v2.model`), which loads strictly. One embedding is made of every
five pictures and one of every 0.2 s of sound; the offset is the shift at which they lie closest on average.

The sign is ours and that of SyncNet's authors ("-1 means that the audio is faster"): positive where the sound is late. The
number that their script prints comes out with the other sign, since it subtracts the shift from its range.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from uniavgen.ingest.config import SyncConfig
from uniavgen.ingest.models.lip_sync import GRID_HZ, LipSync
from uniavgen.ingest.models.published_networks import MFCC_HZ, NETWORK_FPS, face_crops, load_published, mfcc

EMBEDDING = 1024
PICTURES, STEPS = 5, 20
"""Pictures, and MFCC frames, that one embedding is made of."""

HALF_SURE = 3.0
"""SyncNet confidence that counts as 0.5 (LatentSync's threshold); c becomes c / (c + 3)."""

BATCH = 16


class SyncNet:
    """The network with its weights. Raises UserError (missing-weights, wrong-weights) where they are absent or not its own."""

    def __init__(self, config: SyncConfig, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.reach = config.max_shift_ms * NETWORK_FPS // 1000
        self._margin = self.reach * STEPS // PICTURES
        self._max_shift_ms = config.max_shift_ms
        network = Network()
        load_published(network, config.syncnet_weights, "sync.syncnet_weights")
        self._network = network.eval().to(self.device)

    def lip_sync(self, pictures: np.ndarray, boxes: np.ndarray, pcm: np.ndarray) -> LipSync:
        """Sync of one clip.

        `pictures` uint8 [T, H, W, 3] RGB at 25 fps; `boxes` float [T, 4] of the face in fractions of the picture, NaN where
        it is not seen; `pcm` int16 at 16 kHz with `max_shift_ms` of sound either side. All None where the face is not seen
        in a quarter of the pictures or more, or the clip is under 1 s.
        """
        count = len(pictures) - PICTURES
        if len(pictures) < NETWORK_FPS or np.isfinite(boxes).all(axis=1).mean() < 0.75:
            return LipSync()
        lips = self.embed_lips(face_crops(pictures, boxes))[:count]
        surplus = (
            round(self._max_shift_ms * MFCC_HZ / 1000) - self._margin
        )  # a reach that is no whole number of pictures
        sound = self.embed_sound(mfcc(pcm)[surplus:], count + 2 * self.reach)
        return sync_from_distances(shift_distances(lips, sound))

    def embed_lips(self, crops: np.ndarray) -> np.ndarray:
        """float32 [T - 4, 1024] from face crops uint8 [T, 224, 224, 3] RGB: one for every five pictures in a row."""
        pixels = torch.from_numpy(
            np.ascontiguousarray(crops[..., ::-1].transpose(3, 0, 1, 2))
        )  # blue first, as it was trained
        windows = pixels.unfold(1, PICTURES, 1).permute(1, 0, 4, 2, 3)
        return self._batched(self._network.lips, windows)

    def embed_sound(self, coefficients: np.ndarray, count: int) -> np.ndarray:
        """float32 [count, 1024] from MFCCs [n, 13] at 100 Hz: one for every 0.2 s, 40 ms apart; zeros after the end."""
        step = MFCC_HZ // NETWORK_FPS
        short = max(0, (count - 1) * step + STEPS - len(coefficients))
        heard = torch.from_numpy(np.pad(coefficients, ((0, short), (0, 0))).T.copy())
        windows = heard.unfold(1, STEPS, step)[:, :count].permute(1, 0, 2)[:, None]
        return self._batched(self._network.sound, windows)

    def _batched(self, embed: nn.Module, windows: Tensor) -> np.ndarray:
        with torch.inference_mode():
            parts = [embed(part.to(self.device, torch.float32)).cpu() for part in windows.split(BATCH)]
        found: np.ndarray = torch.cat(parts).numpy()
        return found


def shift_distances(lips: np.ndarray, sound: np.ndarray) -> np.ndarray:
    """Mean distance of the embeddings at every shift: float [2 reach + 1], the last one for sound that is `reach` late.

    `lips` [n, D] against `sound` [n + 2 reach, D], which starts `reach` earlier.
    """
    count = len(lips)
    shifts = range(len(sound) - count + 1)
    return np.array([np.linalg.norm(lips - sound[shift : shift + count], axis=1).mean() for shift in shifts])


def sync_from_distances(distances: np.ndarray) -> LipSync:
    """The offset with the smallest distance. SyncNet's confidence is the median distance minus the smallest (LSE-C), and the
    smallest distance its other score (LSE-D); the curve is the median minus the distance, so that it peaks where it fits,
    drawn in steps of 10 ms like every sync curve."""
    best = int(distances.argmin())
    fit = np.median(distances) - distances
    finer = GRID_HZ // NETWORK_FPS
    curve = np.interp(np.arange((len(fit) - 1) * finer + 1) / finer, np.arange(len(fit)), fit)
    raw = float(fit[best])
    scores = {"syncnet_confidence": raw, "syncnet_distance": float(distances[best])}
    offset_ms = (best - len(distances) // 2) * 1000 / NETWORK_FPS
    return LipSync(offset_ms, raw / (raw + HALF_SURE), curve.astype(np.float32), scores)


class Network(nn.Module):
    """Two towers of convolutions and two of fully connected layers, under their published names."""

    def __init__(self) -> None:
        super().__init__()
        self.netcnnaud = nn.Sequential(
            *_layer(nn.Conv2d(1, 64, 3, padding=1)),
            nn.MaxPool2d(1, 1),
            *_layer(nn.Conv2d(64, 192, 3, padding=1)),
            nn.MaxPool2d(3, (1, 2)),
            *_layer(nn.Conv2d(192, 384, 3, padding=1)),
            *_layer(nn.Conv2d(384, 256, 3, padding=1)),
            *_layer(nn.Conv2d(256, 256, 3, padding=1)),
            nn.MaxPool2d(3, 2),
            *_layer(nn.Conv2d(256, 512, (5, 4))),
        )
        self.netfcaud = _head()
        self.netfclip = _head()
        self.netcnnlip = nn.Sequential(
            *_layer(nn.Conv3d(3, 96, (5, 7, 7), (1, 2, 2))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_layer(nn.Conv3d(96, 256, (1, 5, 5), (1, 2, 2), (0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            *_layer(nn.Conv3d(256, 256, (1, 3, 3), padding=(0, 1, 1))),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2)),
            *_layer(nn.Conv3d(256, 512, (1, 6, 6))),
        )

    @property
    def sound(self) -> nn.Module:
        """MFCCs [N, 1, 13, 20] to [N, 1024]."""
        return nn.Sequential(self.netcnnaud, nn.Flatten(), self.netfcaud)

    @property
    def lips(self) -> nn.Module:
        """Pictures 0..255 [N, 3, 5, 224, 224], blue first, to [N, 1024]."""
        return nn.Sequential(self.netcnnlip, nn.Flatten(), self.netfclip)


def _layer(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
    return convolution, norm(convolution.out_channels), nn.ReLU()


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, EMBEDDING))
