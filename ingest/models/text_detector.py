"""How much of the picture lies under text: PP-OCRv4's detector, which finds text in any script and reads none of it.

Goes in: pictures uint8 [H, W, 3] RGB of the 16 fps grid. Comes out: the share of each looked-at picture that its boxes of
text cover. The detector (differentiable binarisation, arXiv 1911.08947) gives a probability for every pixel of text shrunk
towards its middle; boxes are drawn around it and grown back.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uniavgen.ingest.config import TextConfig
from uniavgen.ingest.records import TextSeen
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.shards.weights import resolve

STRIDE = 32
"""Width and height that the network takes are multiples of this."""

SMALLEST_PX = 3.0
"""Thinner boxes are dust (PP-OCR's default)."""


class TextReader:
    """The detector, loaded once; it runs on one thread."""

    def __init__(self, config: TextConfig) -> None:
        import onnxruntime

        self.config = config
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = resolve("ppocr-det", config.folder or None) / "text_detector.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def covered(self, picture: np.ndarray) -> float:
        """Share 0..1 of the picture under boxes of text."""
        import cv2

        probability = self.probability(picture)
        mask = np.zeros(probability.shape, np.uint8)
        for box in text_boxes(probability, self.config):
            cv2.fillPoly(mask, [np.round(box).astype(np.int32)], 1)
        return float(mask.mean())

    def probability(self, picture: np.ndarray) -> np.ndarray:
        """Probability of text float32 [h, w], the picture's size rounded to multiples of 32."""
        import cv2

        height, width = (max(STRIDE, round(side / STRIDE) * STRIDE) for side in picture.shape[:2])
        scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)[
            :, :, ::-1
        ]  # it was trained on BGR
        levels = (scaled.astype(np.float32) / 255 - 0.5) / 0.5
        (found,) = self._session.run(
            None, {self._session.get_inputs()[0].name: levels.transpose(2, 0, 1)[None]}
        )
        result: np.ndarray = found[0, 0]
        return result


def text_boxes(probability: np.ndarray, config: TextConfig) -> list[np.ndarray]:
    """Corners float32 [4, 2], in pixels of `probability` [h, w], of boxes around its connected text, each grown on every
    side by `box_growth` x area / perimeter."""
    import cv2

    likely = (probability > config.pixel_probability).astype(np.uint8)
    shapes, _ = cv2.findContours(likely, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    boxes = []
    for shape in shapes:
        middle, (width, height), angle = cv2.minAreaRect(shape)
        inside = np.zeros(probability.shape, np.uint8)
        cv2.fillPoly(inside, [shape], 1)
        if min(width, height) < SMALLEST_PX or cv2.mean(probability, inside)[0] < config.box_probability:
            continue
        grown = 2 * config.box_growth * width * height / (2 * (width + height))
        boxes.append(cv2.boxPoints((middle, (width + grown, height + grown), angle)))
    return boxes


class TextCollector:
    """Fed with every picture of the 16 fps grid in order; looks at one every `every_s` where `wanted(seconds)`."""

    def __init__(self, reader: TextReader, config: TextConfig, wanted: Callable[[float], bool]) -> None:
        self._reader, self._wanted = reader, wanted
        self._every = max(1, round(config.every_s * VIDEO_FPS))
        self._ratio: list[float] = []

    def add_frame(self, frame: int, picture: np.ndarray) -> None:
        due = frame % self._every == 0 and self._wanted(frame / VIDEO_FPS)
        self._ratio.append(self._reader.covered(picture) if due else np.nan)

    def result(self) -> TextSeen:
        return TextSeen(np.array(self._ratio, np.float32))


def text_ratio(text: TextSeen, first: int, last: int) -> float | None:
    """Mean share of the picture under text in the frames [first, last) that were looked at; None if none was."""
    looked = text.ratio[first:last]
    looked = looked[np.isfinite(looked)]
    return float(looked.mean()) if len(looked) else None
