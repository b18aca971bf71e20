"""Burned-in text by PP-OCRv4's detector, which finds text in any script and reads none.

The detector (differentiable binarisation, arXiv 1911.08947) gives a probability per pixel of text shrunk
towards its middle; boxes are drawn around it and grown back. The result is the share of the frame that boxes
cover.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uniavgen.ingest.config import TextConfig
from uniavgen.ingest.records import TextSeen
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.shards.weights import resolve

STRIDE = 32
"""Width and height of the network's input are multiples of this."""

MIN_BOX_PX = 3.0
"""Thinner boxes are dropped as noise (PP-OCR's default)."""


class TextDetector:
    """The detector, loaded once; one thread."""

    def __init__(self, config: TextConfig) -> None:
        import onnxruntime

        self.config = config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = resolve("ppocr-det", config.folder or None) / "text_detector.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def covered(self, frame: np.ndarray) -> float:
        """Share 0..1 of the frame under boxes of text."""
        import cv2

        probability = self.probability(frame)
        mask = np.zeros(probability.shape, np.uint8)
        for box in text_boxes(probability, self.config):
            cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1)
        return float(mask.mean())

    def probability(self, frame: np.ndarray) -> np.ndarray:
        """Probability of text float32 [h, w]; the frame's size is rounded to multiples of 32."""
        import cv2

        height, width = (max(STRIDE, round(side / STRIDE) * STRIDE) for side in frame.shape[:2])
        scaled = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
        levels = (scaled[:, :, ::-1].astype(np.float32) / 255 - 0.5) / 0.5  # BGR, as in training
        (output,) = self._session.run(
            None, {self._session.get_inputs()[0].name: levels.transpose(2, 0, 1)[None]}
        )
        probability: np.ndarray = output[0, 0]
        return probability


def text_boxes(probability: np.ndarray, config: TextConfig) -> list[np.ndarray]:
    """Corners float32 [4, 2], in pixels of `probability` [h, w], of boxes around connected text, each grown
    on every side by `box_growth` x area / perimeter.
    """
    import cv2

    likely = (probability > config.pixel_probability).astype(np.uint8)
    contours, _ = cv2.findContours(likely, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for contour in contours:
        centre, (width, height), angle = cv2.minAreaRect(contour)
        inside = np.zeros(probability.shape, np.uint8)
        cv2.fillPoly(inside, [contour], 1)
        if min(width, height) < MIN_BOX_PX or cv2.mean(probability, inside)[0] < config.box_probability:
            continue
        grown = 2 * config.box_growth * width * height / (2 * (width + height))
        boxes.append(cv2.boxPoints((centre, (width + grown, height + grown), angle)))
    return boxes


class TextCollector:
    """Collects the text share of one frame every `every_s` where `wanted(seconds)`; it gets every frame in
    order.
    """

    def __init__(self, detector: TextDetector, config: TextConfig, wanted: Callable[[float], bool]) -> None:
        self._detector, self._wanted = detector, wanted
        self._every = max(1, round(config.every_s * VIDEO_FPS))
        self._ratio: list[float] = []

    def add_frame(self, index: int, frame: np.ndarray) -> None:
        due = index % self._every == 0 and self._wanted(index / VIDEO_FPS)
        self._ratio.append(self._detector.covered(frame) if due else np.nan)

    def result(self) -> TextSeen:
        return TextSeen(np.array(self._ratio, np.float32))
