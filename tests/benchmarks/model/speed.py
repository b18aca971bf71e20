"""Cost of the interaction, and our Wan transformer against diffusers': ratios within one run.

    python tests/benchmarks/model/speed.py [--only interaction,dual,wan] [--fraction 16] [--turns 5]
                                           [--json FILE]

interaction   one interaction layer forward and backward at the paper's geometry (T 21, 390 tokens a latent,
              475 mel frames, widths 3072 / 1536 over --fraction): ATI against the same layer with one global
              SDPA call (sgi), ATI against ATI without positions (plain), and plain against loops over latents
              and mel frames written from the equations. Time and peak memory.
dual          the dual model against its two branches without the interaction, beside the prediction of the
              FLOP formula.
wan           our branch against diffusers' WanTransformer3DModel on the same weights, clean and noisy frames.

Both sides of a ratio take turns, so that load on the machine affects both. On a CPU: one thread's CPU time,
and the allocator's record for memory; on a GPU (--device cuda): events and peak statistics.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uniavgen.shards.timing import frame_of_mel, frames_for_latents, latent_of_frame
from uniavgen.train.batch import NOISY, REFERENCE, BranchInput, Segment
from uniavgen.train.model.alignment import align
from uniavgen.train.model.config import BranchConfig, InteractionConfig, ModelConfig, SpeechTextConfig
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.flops import Shapes, forward_flops
from uniavgen.train.model.interaction import CrossModal, Interaction

sys.path.append(str(Path(__file__).parents[2] / "factories"))
import peak_memory

LATENTS, TOKENS, MELS = 21, 390, 475
WIDTHS, HEAD = (3072, 1536), 128
Work = Callable[[], Any]


def seconds(works: dict[str, Work], turns: int, device: str) -> dict[str, float]:
    """Median time of each work, in rotating turns after one warm-up turn."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(-1, turns):
        names = list(works)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            spent = one_time(works[name], device)
            if turn >= 0:
                taken[name].append(spent)
    return {name: statistics.median(values) for name, values in taken.items()}


def one_time(work: Work, device: str) -> float:
    if device == "cpu":
        began = time.process_time()
        work()
        return time.process_time() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def peak_bytes(work: Work, device: str) -> int:
    """Peak bytes of a work above what was allocated before."""
    if device != "cpu":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    return peak_memory.peak_bytes(work)


def model_of(fraction: int, layers: int, aligner: str, **changes: Any) -> ModelConfig:
    """The paper's widths over `fraction`, with its head width if that divides them."""
    video, audio = (width // fraction for width in WIDTHS)
    head = min(HEAD, audio // 2)
    return ModelConfig(
        video=BranchConfig(
            dim=video,
            layers=layers,
            heads=video // head,
            ffn_dim=video * 14 // 3 // 8 * 8,
            in_channels=48,
            patch=(2, 2),
            text_dim=64,
        ),
        audio=BranchConfig(
            dim=audio,
            layers=layers,
            heads=audio // head,
            ffn_dim=audio * 35 // 6 // 8 * 8,
            in_channels=100,
            text_dim=64,
            rope_axes="time",
        ),
        speech_text=SpeechTextConfig(dim=64),
        interaction=InteractionConfig(a2v=aligner, v2a=aligner, **changes),
    )


def both_ways(outputs: Callable[[], tuple[Tensor, ...]], parameters: list[Tensor]) -> Work:
    """Forward and backward of the sum of squares; gradients are dropped."""

    def work() -> None:
        sum(out.float().square().mean() for out in outputs()).backward()
        for parameter in parameters:
            parameter.grad = None

    return work


def naive_interaction(
    module: Interaction, config: InteractionConfig, video: Tensor, audio: Tensor
) -> tuple[Tensor, Tensor]:
    """The equations as loops over latents and over mel frames, with an attention call for each."""
    mask = module.face(video) if module.face is not None else torch.ones_like(video[..., :1])
    hv, ha = (
        F.layer_norm(x.float(), x.shape[-1:], eps=module.eps).to(x.dtype) for x in (video, audio[:, :, 0])
    )
    k, frames, last = config.mels_per_frame, frames_for_latents(video.shape[1]), video.shape[1] - 1
    frame_of = [frame_of_mel(mel, k) for mel in range(audio.shape[1])]
    updates = []
    for latent in range(video.shape[1]):
        end = frames_for_latents(latent + 1)
        reach = range(max(0, end - 4) - config.window, end + config.window)
        wanted = [
            mel for f in reach for mel in range(len(frame_of)) if frame_of[mel] == min(max(f, 0), frames - 1)
        ]
        updates.append(cross_attend(module.a2v, hv[:, latent], ha[:, wanted]))
    new_video = video + mask * torch.stack(updates, dim=1)
    masked, updates = mask * hv, []
    for mel, frame in enumerate(frame_of):
        latent, after = latent_of_frame(frame), min(latent_of_frame(frame + 1), last)
        alpha = float(mel / k - frame)
        updates.append(
            cross_attend(
                module.v2a, ha[:, mel : mel + 1], (1 - alpha) * masked[:, latent] + alpha * masked[:, after]
            )
        )
    return new_video, audio + torch.cat(updates, dim=1).unsqueeze(2)


def cross_attend(direction: CrossModal, query: Tensor, context: Tensor) -> Tensor:
    q, k, v = (
        part.unflatten(-1, (direction.heads, -1)).transpose(1, 2)
        for part in (direction.q(query), direction.k(context), direction.v(context))
    )
    return direction.o(query + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def interaction(fraction: int, turns: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """ATI against one global call, ATI against ATI without positions, and the latter against the loop."""
    layouts = (Segment(NOISY, 0, LATENTS),), (Segment(NOISY, 0, MELS),)
    works: dict[str, Work] = {}
    torch.manual_seed(0)
    for name, changes in (("ati", {}), ("sgi", {}), ("plain", {"positions": "none"})):
        config = model_of(fraction, 2, "sgi" if name == "sgi" else "ati", **changes)
        module = Interaction(config).to(device, dtype)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        video = torch.randn(
            1, LATENTS, TOKENS, config.video.dim, device=device, dtype=dtype, requires_grad=True
        )
        audio = torch.randn(1, MELS, 1, config.audio.dim, device=device, dtype=dtype, requires_grad=True)
        table = align(config, *layouts, torch.device(device))
        inputs = [video, audio, *module.parameters()]
        works[name] = both_ways(lambda m=module, v=video, a=audio, t=table: m(v, a, t)[:2], inputs)
        if name == "plain":
            settings = config.interaction
            works["loop"] = both_ways(
                lambda m=module, v=video, a=audio, c=settings: naive_interaction(m, c, v, a), inputs
            )
            with torch.no_grad():
                pairs = zip(
                    module(video, audio, table)[:2],
                    naive_interaction(module, settings, video, audio),
                    strict=True,
                )
                apart = max(float((ours - theirs).abs().max()) for ours, theirs in pairs)
    memory = {name: peak_bytes(work, device) for name, work in works.items()}
    slow = {"loop": seconds({"loop": works.pop("loop")}, 1, device)["loop"]}
    taken = seconds(works, turns, device) | slow
    return {
        "widths": [width // fraction for width in WIDTHS],
        "seconds": taken,
        "peak_mb": {name: round(count / 1e6, 1) for name, count in memory.items()},
        "largest_difference_from_loop": apart,
        "time_ati_over_global": taken["ati"] / taken["sgi"],
        "memory_ati_over_global": memory["ati"] / memory["sgi"],
        "time_ati_over_plain": taken["ati"] / taken["plain"],
        "memory_ati_over_plain": memory["ati"] / memory["plain"],
        "time_loop_over_plain": taken["loop"] / taken["plain"],
        "memory_loop_over_plain": memory["loop"] / memory["plain"],
    }


def dual_inputs(
    config: ModelConfig, latents: int, side: tuple[int, int], mels: int, device: str
) -> tuple[BranchInput, ...]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device)

    t, mask = torch.full((1,), 0.5, device=device), torch.ones(1, 32, dtype=torch.bool, device=device)
    video = BranchInput(
        normal(1, 48, latents + 1, *side),
        (Segment(REFERENCE, -1, 1), Segment(NOISY, 0, latents)),
        t,
        normal(1, 32, 64),
        mask,
    )
    ids = torch.ones(1, 32, dtype=torch.int64, device=device)
    return video, BranchInput(normal(1, 100, mels), (Segment(NOISY, 0, mels),), t, ids, mask)


def dual(fraction: int, turns: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """The dual model against its branches: overhead of the interaction, measured and by FLOP formula."""
    config = model_of(fraction, 4, "ati")
    torch.manual_seed(0)
    model = DualBranch(config).to(device, dtype)
    latents, side, mels = 21, (16, 16), MELS
    inputs, parameters = dual_inputs(config, latents, side, mels, device), list(model.parameters())

    def outputs(interact: bool) -> tuple[Tensor, ...]:
        out = model(*inputs, interact=interact)
        assert out.video is not None
        assert out.audio is not None
        return out.video, out.audio

    works = {
        "dual": both_ways(lambda: outputs(True), parameters),
        "branches": both_ways(lambda: outputs(False), parameters),
    }
    taken = seconds(works, turns, device)
    shapes = Shapes(
        latents=latents + 1,
        height=side[0],
        width=side[1],
        mels=mels,
        reference_latents=1,
        caption_tokens=32,
        speech_tokens=32,
    )
    flops = {on: forward_flops(config, shapes, interact=on)["total"] for on in (True, False)}
    return {
        "widths": [config.video.dim, config.audio.dim],
        "seconds": taken,
        "overhead_percent": 100 * (taken["dual"] / taken["branches"] - 1),
        "overhead_predicted_percent": 100 * (flops[True] / flops[False] - 1),
    }


def wan(fraction: int, turns: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Our branch against diffusers' transformer, forward and backward, with per-token timesteps as in
    training."""
    import small_wan

    dim, head = WIDTHS[0] // fraction, min(HEAD, WIDTHS[1] // fraction // 2)
    ffn, layers, frames, side, text = dim * 14 // 3 // 8 * 8, 4, 11, (16, 16), 64
    shape = {"in_channels": 48, "heads": dim // head, "dim": dim, "ffn_dim": ffn, "layers": layers}
    pair = small_wan.wan_pair(shape, text_dim=64, text_len=text)
    ours, theirs = (model.to(device, dtype) for model in pair)
    latent = torch.randn(1, 48, frames, *side, device=device, dtype=dtype)
    features = torch.randn(1, text, 64, device=device, dtype=dtype)
    t, mask = torch.full((1,), 0.5, device=device), torch.ones(1, text, dtype=torch.bool, device=device)
    data = BranchInput(latent, (Segment(REFERENCE, -1, 1), Segment(NOISY, 0, frames - 1)), t, features, mask)
    tokens = side[0] * side[1] // 4
    per_token = torch.cat([torch.zeros(1, tokens), torch.full((1, (frames - 1) * tokens), 500.0)], dim=1).to(
        device
    )
    works = {
        "ours": both_ways(lambda: (small_wan.velocity(ours, data),), list(ours.parameters())),
        "diffusers": both_ways(
            lambda: (theirs(latent, per_token, features).sample,), list(theirs.parameters())
        ),
    }
    memory = {name: peak_bytes(work, device) for name, work in works.items()}
    taken = seconds(works, turns, device)
    return {
        "width": dim,
        "tokens": frames * tokens,
        "seconds": taken,
        "peak_mb": {name: round(count / 1e6, 1) for name, count in memory.items()},
        "speed_over_diffusers": taken["diffusers"] / taken["ours"],
        "memory_over_diffusers": memory["ours"] / memory["diffusers"],
    }


PARTS = {"interaction": interaction, "dual": dual, "wan": wan}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by comma")
    parser.add_argument(
        "--fraction", type=int, default=16, help="the paper's widths are divided by this (1 on a GPU)"
    )
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in options.only.split(","):
        results[name] = PARTS[name](
            options.fraction, options.turns, options.device, getattr(torch, options.dtype)
        )
        print(name, json.dumps(results[name], indent=1), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
