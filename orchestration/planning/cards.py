"""GPUs by name, with the figures that planning needs."""

from __future__ import annotations

from dataclasses import dataclass

from uniavgen.shards.errors import UsageError, choice_hint
from uniavgen.train.planning import PEAK_TFLOPS

OPERATION_S = 6e-6
"""Seconds in which a host launches one operation of eager PyTorch, with autograd. Heuristic."""
FP32_SHARE = 1 / 15
"""Peak of fp32 as share of the dense bf16 peak, for a card given by its numbers (as on an H100)."""


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB, dense bf16 peak in TFLOP/s, memory bandwidth in GB/s, fp32 peak in TFLOP/s."""

    name: str
    memory_gib: float
    tflops: float
    bandwidth_gb_s: float
    fp32_tflops: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("h100", 79.6, PEAK_TFLOPS["h100"], 3350, 67),
        Gpu("h200", 140.4, PEAK_TFLOPS["h200"], 4800, 67),
        Gpu("a100", 79.3, PEAK_TFLOPS["a100"], 2039, 19.5),
        Gpu("l40s", 45.0, PEAK_TFLOPS["l40s"], 864, 91.6),
        Gpu("4090", 24.0, PEAK_TFLOPS["4090"], 1008, 82.6),
        Gpu("a10", 22.5, PEAK_TFLOPS["a10"], 600, 31.2),
    )
}
"""From NVIDIA's data sheets (H100, H200, A100: SXM; H100 and A100 with 80 GB); memory as drivers report."""
ALIASES = {"h100-80g": "h100", "a100-80g": "a100", "rtx4090": "4090"}


def find_gpu(text: str) -> Gpu:
    """A GPU of `GPUS` by name in any case, or one as `MEMORY_GIB,TFLOPS,GB_PER_S`.

    Raises UsageError otherwise.
    """
    name = text.strip().lower()
    name = ALIASES.get(name, name)
    if name in GPUS:
        return GPUS[name]
    try:
        memory_gib, tflops, bandwidth = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"unknown GPU {text!r}",
            where="--gpu",
            hint=f"{choice_hint(text, GPUS)}; or memory in GiB, dense bf16 TFLOP/s and GB/s, as 24,165,1008",
        ) from None
    if not all(0 < number < float("inf") for number in (memory_gib, tflops, bandwidth)):
        raise UsageError(f"a GPU's numbers must be above 0, got {text!r}", where="--gpu")
    return Gpu("custom", memory_gib, tflops, bandwidth, tflops * FP32_SHARE)
