"""Lip sync by SyncNet (Chung and Zisserman 2016, "Out of time: automated lip sync in the wild"), with
published weights.

The network follows the published state dict (`syncnet_v2.model`), which loads strictly. It gives one
embedding per five frames at 25 fps and one per 0.2 s of audio; the offset is the shift with the smallest mean
distance.

The sign is that of the paper ("-1 means that the audio is faster"): positive for late audio. The authors'
script prints the other sign, because it subtracts the shift from its range.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from uniavgen.ingest.config import SyncConfig
from uniavgen.ingest.models.lip_sync import GRID_HZ, LipSync
from uniavgen.ingest.models.published_networks import MFCC_HZ, NETWORK_FPS, face_crops, load_published, mfcc

EMBEDDING = 1024
FRAMES, STEPS = 5, 20
"""Video frames and MFCC frames per embedding."""

HALF_CONFIDENCE = 3.0
"""SyncNet confidence c that maps to 0.5 in c / (c + 3) (LatentSync's threshold)."""

BATCH = 16


class SyncNet:
    """The network with its weights. Raises UserError (missing-weights, wrong-weights)."""

    def __init__(self, config: SyncConfig, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.reach = config.max_shift_ms * NETWORK_FPS // 1000
        self._margin = self.reach * STEPS // FRAMES
        self._max_shift_ms = config.max_shift_ms
        network = Network()
        load_published(network, config.syncnet_weights, "sync.syncnet_weights")
        self._network = network.eval().to(self.device)

    def lip_sync(self, frames: np.ndarray, boxes: np.ndarray, pcm: np.ndarray) -> LipSync:
        """Sync of one clip.

        `frames` uint8 [T, H, W, 3] RGB at 25 fps; `boxes` float [T, 4] of the face in fractions of the frame,
        NaN where it is not seen; `pcm` int16 at 16 kHz with `max_shift_ms` of audio on either side. All None
        where the face is missing in 25 % of the frames or more, or the clip is under 1 s.
        """
        count = len(frames) - FRAMES
        if len(frames) < NETWORK_FPS or np.isfinite(boxes).all(axis=1).mean() < 0.75:
            return LipSync()
        lips = self.embed_lips(face_crops(frames, boxes))[:count]
        # the margin of the audio may be longer than a whole number of video frames
        surplus = round(self._max_shift_ms * MFCC_HZ / 1000) - self._margin
        audio = self.embed_audio(mfcc(pcm)[surplus:], count + 2 * self.reach)
        return sync_from_distances(shift_distances(lips, audio))

    def embed_lips(self, crops: np.ndarray) -> np.ndarray:
        """Embeddings float32 [T - 4, 1024] of every five consecutive face crops uint8 [T, 224, 224, 3]
        RGB.
        """
        # BGR, as in training
        pixels = torch.from_numpy(np.ascontiguousarray(crops[..., ::-1].transpose(3, 0, 1, 2)))
        windows = pixels.unfold(1, FRAMES, 1).permute(1, 0, 4, 2, 3)
        return self._batched(self._network.lips, windows)

    def embed_audio(self, coefficients: np.ndarray, count: int) -> np.ndarray:
        """Embeddings float32 [count, 1024] of 0.2 s windows, 40 ms apart, of MFCCs [n, 13] at 100 Hz; zeros
        after the end.
        """
        step = MFCC_HZ // NETWORK_FPS
        missing = max(0, (count - 1) * step + STEPS - len(coefficients))
        mfccs = torch.from_numpy(np.pad(coefficients, ((0, missing), (0, 0))).T.copy())
        windows = mfccs.unfold(1, STEPS, step)[:, :count].permute(1, 0, 2)[:, None]
        return self._batched(self._network.audio, windows)

    def _batched(self, embed: nn.Module, windows: Tensor) -> np.ndarray:
        with torch.inference_mode():
            parts = [embed(part.to(self.device, torch.float32)).cpu() for part in windows.split(BATCH)]
        embeddings: np.ndarray = torch.cat(parts).numpy()
        return embeddings


def shift_distances(lips: np.ndarray, audio: np.ndarray) -> np.ndarray:
    """Mean distance of the embeddings at every shift: float [2 reach + 1], the last for audio that is `reach`
    late.

    `lips` [n, D] against `audio` [n + 2 reach, D], which starts `reach` earlier.
    """
    count = len(lips)
    shifts = range(len(audio) - count + 1)
    return np.array([np.linalg.norm(lips - audio[shift : shift + count], axis=1).mean() for shift in shifts])


def sync_from_distances(distances: np.ndarray) -> LipSync:
    """The offset with the smallest distance.

    Scores: the median minus the smallest distance (SyncNet's confidence, LSE-C) and the smallest distance
    (LSE-D). The curve is the median minus the distance, interpolated to steps of 10 ms like every sync curve.
    """
    best = int(distances.argmin())
    match = np.median(distances) - distances
    steps = GRID_HZ // NETWORK_FPS
    curve = np.interp(np.arange((len(match) - 1) * steps + 1) / steps, np.arange(len(match)), match)
    raw = float(match[best])
    scores = {"syncnet_confidence": raw, "syncnet_distance": float(distances[best])}
    offset_ms = (best - len(distances) // 2) * 1000 / NETWORK_FPS
    return LipSync(offset_ms, raw / (raw + HALF_CONFIDENCE), curve.astype(np.float32), scores)


class Network(nn.Module):
    """Convolutional and fully connected layers of the two towers, under their published names."""

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
    def audio(self) -> nn.Module:
        """MFCCs [N, 1, 13, 20] to [N, 1024]."""
        return nn.Sequential(self.netcnnaud, nn.Flatten(), self.netfcaud)

    @property
    def lips(self) -> nn.Module:
        """BGR frames 0..255 [N, 3, 5, 224, 224] to [N, 1024]."""
        return nn.Sequential(self.netcnnlip, nn.Flatten(), self.netfclip)


def _layer(convolution: nn.Conv2d | nn.Conv3d) -> tuple[nn.Module, ...]:
    norm = nn.BatchNorm2d if isinstance(convolution, nn.Conv2d) else nn.BatchNorm3d
    return convolution, norm(convolution.out_channels), nn.ReLU()


def _head() -> nn.Sequential:
    return nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, EMBEDDING))
