"""Meters of published networks, for users who have their weights or packages.

AudioBox Aesthetics and DistillMOS run by their own packages, MUSIQ by pyiqa, DINO by transformers, RAFT by
torchvision.
"""

from __future__ import annotations

import contextlib
import importlib.util
import pickle
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from uniavgen.orchestration.evaluation import controls
from uniavgen.orchestration.evaluation.meters import Measured
from uniavgen.orchestration.evaluation.picture import (
    fastest_motion,
    imaging_quality,
    is_dynamic,
    subject_consistency,
    thinned,
)
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS

if TYPE_CHECKING:
    from uniavgen.orchestration.evaluation.videos import Media

SHORTER_SIDE, LONGER_SIDE = 224, 512
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAFT_ITERATIONS = 20


def require_package(package: str, metrics: str) -> None:
    """Raise UserError if a package that measures `metrics` is not installed."""
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise UserError(
            f"{metrics} needs the package {package}", hint=f"pip install {package}", kind="missing-package"
        )


def require_path(path: str, setting: str) -> None:
    """Raise UserError if the weights that a setting names are absent."""
    if not Path(path).exists():
        raise UserError(
            "no weights here", where=path, hint=f"check evaluate.weights.{setting}", kind="missing-weights"
        )


class AestheticMeter:
    """PQ and CU by AudioBox Aesthetics. Raises UserError without its package or checkpoint."""

    name, version, metrics, control = "audio-aesthetics", "1", ("PQ", "CU"), controls.NOISE

    def __init__(self, checkpoint: str) -> None:
        require_path(checkpoint, "audiobox")
        require_package("audiobox-aesthetics", "PQ and CU")
        from audiobox_aesthetics.infer import AesPredictor

        self.key = checkpoint
        self._predictor = AesPredictor(checkpoint)

    def measure(self, clip: Media) -> Measured:
        import torch

        waveform = torch.from_numpy(clip.pcm.astype(np.float32) / 32768)[None]
        (scores,) = self._predictor.forward([{"path": waveform, "sample_rate": 16_000}])
        if isinstance(scores, str):
            import json

            scores = json.loads(scores)
        return Measured({name: (float(scores[name]), 1.0) for name in self.metrics})


class DistillMosMeter:
    """DistillMOS by its package, which holds the weights. Raises UserError without it."""

    name, version, metrics, control = "distillmos", "1", ("DistillMOS",), controls.NOISE
    key = "v7"

    def __init__(self) -> None:
        require_package("distillmos", "DistillMOS")
        with contextlib.redirect_stdout(sys.stderr):  # it prints where its weights are
            from distillmos import ConvTransformerSQAModel

            self._model = ConvTransformerSQAModel().eval()

    def measure(self, clip: Media) -> Measured:
        import torch

        if not clip.pcm.any():
            return Measured()
        with torch.inference_mode():
            score = self._model(torch.from_numpy(clip.pcm.astype(np.float32) / 32768)[None])
        return Measured({"DistillMOS": (float(score), 1.0)})


class DinoMeter:
    """SC as VBench: DINO ViT-B/16's class token of every frame, shorter side 224, not cropped."""

    name, version, metrics, control = "subject-consistency", "1", ("SC",), controls.FACE_SPLICE

    def __init__(self, folder: str, device: str = "cpu") -> None:
        require_path(folder, "dino")
        from transformers import ViTModel

        self.key, self._device = folder, device
        self._model = ViTModel.from_pretrained(folder, local_files_only=True).eval().to(device)

    def measure(self, clip: Media) -> Measured:
        import torch

        features = []
        with torch.inference_mode():
            for frame in clip.frames:
                pixels = dino_pixels(frame).to(self._device)
                hidden = self._model(pixels, interpolate_pos_encoding=True).last_hidden_state
                features.append(hidden[0, 0].float().cpu().numpy())
        if len(features) < 2:
            return Measured()
        consistency = subject_consistency(np.stack(features))
        return Measured({"SC": (float(consistency.mean()), float(len(consistency)))})


class RaftMeter:
    """DD as VBench: RAFT-things by torchvision, 20 iterations."""

    name, version, metrics, control = "dynamic-degree", "1", ("DD",), controls.STILL

    def __init__(self, weights: str, device: str = "cpu") -> None:
        require_path(weights, "raft")
        import torch
        from torchvision.models.optical_flow import raft_large

        self.key, self._device = weights, device
        self._model = raft_large(weights=None)
        try:
            self._model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (RuntimeError, KeyError, TypeError) as error:
            raise UserError(
                "the file holds no weights of torchvision's raft_large",
                where=weights,
                hint="check evaluate.weights.raft",
                kind="wrong-weights",
            ) from error
        self._model.eval().to(device)

    def measure(self, clip: Media) -> Measured:
        import torch

        frames = clip.frames[thinned(len(clip.frames), VIDEO_FPS)]
        height, width = (side // 8 * 8 for side in frames.shape[1:3])
        if len(frames) < 2 or min(height, width) < 128:
            return Measured()
        pixels = torch.from_numpy(np.ascontiguousarray(frames[:, :height, :width])).permute(0, 3, 1, 2)
        pixels = pixels.float().to(self._device) / 127.5 - 1
        motions = []
        with torch.inference_mode():
            for before, after in pairwise(pixels):
                flow = self._model(before[None], after[None], num_flow_updates=RAFT_ITERATIONS)[-1][0]
                motions.append(fastest_motion(flow.permute(1, 2, 0).cpu().numpy()))
        return Measured({"DD": (float(is_dynamic(motions, height, width)), 1.0)})


class MusiqMeter:
    """IQ as VBench: MUSIQ trained on SPAQ, by the package pyiqa, on every frame; longer side at most 512."""

    name, version, metrics, control = "imaging-quality", "1", ("IQ",), controls.BLUR

    def __init__(self, weights: str, device: str = "cpu") -> None:
        require_path(weights, "musiq")
        require_package("pyiqa", "IQ")
        from pyiqa.archs.musiq_arch import MUSIQ

        self.key, self._device = weights, device
        try:
            self._model = MUSIQ(pretrained_model_path=weights).eval().to(device)
        except (RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise UserError(
                "the file holds no weights of MUSIQ",
                where=weights,
                hint="check evaluate.weights.musiq",
                kind="wrong-weights",
            ) from error

    def measure(self, clip: Media) -> Measured:
        import torch

        with torch.inference_mode():
            qualities = [float(self._model(musiq_pixels(frame).to(self._device))) for frame in clip.frames]
        return Measured({"IQ": (imaging_quality(qualities), 1.0)})


def musiq_pixels(frame: np.ndarray) -> Any:
    """A frame uint8 [H, W, 3] as a tensor [1, 3, h, w] in 0..1: longer side at most 512, not smoothed."""
    import torch
    from torch.nn.functional import interpolate

    height, width = frame.shape[:2]
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255
    if max(height, width) <= LONGER_SIDE:
        return pixels
    scale = LONGER_SIDE / max(height, width)
    size = [int(side * scale) for side in (height, width)]
    return interpolate(pixels, size=size, mode="bilinear", antialias=False, align_corners=False)


def dino_pixels(frame: np.ndarray) -> Any:
    """A frame uint8 [H, W, 3] as a normalised tensor [1, 3, h, w]: shorter side 224."""
    import torch
    from torch.nn.functional import interpolate

    height, width = frame.shape[:2]
    scale = SHORTER_SIDE / min(height, width)
    size = [int(side * scale) for side in (height, width)]
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float() / 255
    pixels = interpolate(pixels, size=size, mode="bilinear", antialias=False, align_corners=False)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels - mean) / std
