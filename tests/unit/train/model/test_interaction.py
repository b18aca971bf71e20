"""Each aligner against a naive loop of the paper's equation (values and gradients), and the face mask."""

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import MELS_PER_FRAME
from uniavgen.train.batch import CONDITION, NOISY, REFERENCE, Segment, TokenLayout
from uniavgen.train.model.alignment import align, audio_windows
from uniavgen.train.model.config import (
    BranchConfig,
    FaceConfig,
    InteractionConfig,
    ModelConfig,
    SpeechTextConfig,
)
from uniavgen.train.model.interaction import CrossModal, FaceMask, Interaction

CPU = torch.device("cpu")


def small(interaction: InteractionConfig, face: str) -> ModelConfig:
    return ModelConfig(
        video=BranchConfig(dim=16, layers=2, heads=2, ffn_dim=8, in_channels=4, text_dim=4),
        audio=BranchConfig(dim=12, layers=2, heads=2, ffn_dim=8, in_channels=4, text_dim=8),
        speech_text=SpeechTextConfig(dim=8, layers=0),
        interaction=interaction,
        face=FaceConfig(mode=face),
    )


def random_module(config: ModelConfig, seed: int) -> Interaction:
    torch.manual_seed(seed)
    module = Interaction(config).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module


def pixel_frames(latent: int) -> range:
    return range(1) if latent == 0 else range(4 * latent - 3, 4 * latent + 1)


def owner(frame: int) -> int:
    return next(i for i in range(frame + 1) if frame in pixel_frames(i))


def latent_middle(latent: int) -> float:
    """Time of a latent in video latents: the mean of its pixel frames' middles, over four."""
    own = pixel_frames(latent)
    return sum(frame + 0.5 for frame in own) / len(own) / 4


def mel_middle(mel: int, k: Fraction) -> float:
    return float((mel + Fraction(1, 2)) / k) / 4


def scores(q: Tensor, keys: Tensor, ages: list[float] | None) -> Tensor:
    """q [d] with each of keys [K, d]; `ages`: time of the query less that of each key, None without
    positions.

    Rotary attention by its definition: neighbouring channels are a complex number, and the score is the real
    part of q * conj(k) * exp(i * age * 10000^(-2 c / d)), summed over the pairs c.
    """
    if ages is None:
        return keys @ q
    total = q.new_zeros(len(keys))
    for c in range(len(q) // 2):
        turn = torch.tensor(ages, dtype=q.dtype) * 10_000 ** (-2 * c / len(q))
        a, b, x, y = q[2 * c], q[2 * c + 1], keys[:, 2 * c], keys[:, 2 * c + 1]
        total = total + turn.cos() * (a * x + b * y) + turn.sin() * (a * y - b * x)
    return total


Part = tuple[float, Tensor, list[float] | None]
"""A term of a context: its weight, its rows [K, Dk], and the time of the query minus that of each row."""


def naive_attention(way: CrossModal, query: Tensor, parts: list[Part]) -> Tensor:
    """One query row [Dq] over a weighted sum of key rows, head by head: Wo (H + CrossAttn)."""
    q, v = way.q(query), way.v(sum(weight * rows for weight, rows, _ in parts))
    size, outs = len(q) // way.heads, []
    for head in range(way.heads):
        part = slice(head * size, (head + 1) * size)
        logits = sum(weight * scores(q[part], way.k(rows)[:, part], ages) for weight, rows, ages in parts)
        outs.append(F.softmax(logits / math.sqrt(size), dim=0) @ v[:, part])
    return way.o(query + torch.cat(outs))


def naive_context_a2v(config: InteractionConfig, audio: Tensor, latent: int, latents: int) -> list[Part]:
    """C_i: the blocks i-w .. i+w one after another, border blocks replicated."""
    chosen = naive_window(config, len(audio), latent, latents)
    ages = [latent_middle(latent) - mel_middle(mel, config.mels_per_frame) for mel in chosen]
    return [(1.0, audio[chosen], ages if config.positions == "time" else None)]


def naive_window(config: InteractionConfig, mels: int, latent: int, latents: int) -> list[int]:
    """Mel frames of C_i."""
    k, reach = config.mels_per_frame, 0 if config.a2v == "sti" else config.window
    if config.a2v == "sgi":
        return list(range(mels))
    frames = 1 + 4 * (latents - 1)
    by_frame = [[j for j in range(mels) if math.floor(Fraction(j) / k) == f] for f in range(frames)]
    if config.window_unit == "frame" and config.a2v == "ati":
        blocks, own = by_frame, pixel_frames(latent)
    else:
        blocks = [[j for f in pixel_frames(i) for j in by_frame[f]] for i in range(latents)]
        own = range(latent, latent + 1)
    window = range(own[0] - reach, own[-1] + reach + 1)
    return [mel for i in window for mel in blocks[min(max(i, 0), len(blocks) - 1)]]


def naive_context_v2a(config: InteractionConfig, video: Tensor, mel: int) -> list[Part]:
    """C_j of rows [S, D] (sgi: [T * S, D]), interpolated between pixel frames or latents."""
    k, latents = config.mels_per_frame, len(video)

    def part(weight: float, *chosen: int) -> Part:
        ages = [
            mel_middle(mel, k) - latent_middle(latent) for latent in chosen for _ in range(video.shape[1])
        ]
        return (
            weight,
            torch.cat([video[latent] for latent in chosen]),
            ages if config.positions == "time" else None,
        )

    if config.v2a == "sgi":
        return [part(1.0, *range(latents))]
    frame = math.floor(Fraction(mel) / k)
    if config.v2a == "sti":
        return [part(1.0, owner(frame))]
    if config.interpolate_over == "frame":
        replicated = [owner(f) for f in range(1 + 4 * (latents - 1))]
        alpha = float(Fraction(mel) / k - frame)
        return [
            part(1 - alpha, replicated[frame]),
            part(alpha, replicated[min(frame + 1, len(replicated) - 1)]),
        ]
    own = pixel_frames(owner(frame))
    alpha = float((Fraction(mel) / k - own[0]) / len(own))
    return [part(1 - alpha, owner(frame)), part(alpha, min(owner(frame) + 1, latents - 1))]


def naive(
    module: Interaction, video: Tensor, audio: Tensor, refs: tuple[int, int], known: tuple[int, int]
) -> tuple:
    """Both updated streams, with Python loops over samples, frames and tokens; refs and known (conditions)
    are counts."""
    config = module.config
    hv, ha = video, audio
    mask = torch.ones_like(video[..., :1])
    if module.face is not None:
        normed = (video - video.mean(-1, keepdim=True)) / (
            video.var(-1, unbiased=False, keepdim=True) + 1e-6
        ).sqrt()
        head = module.face
        logits = (head.norm.weight * normed + head.norm.bias) @ head.linear.weight[0] + head.linear.bias[0]
        mask = (1 / (1 + torch.exp(-logits)))[..., None]
    if config.pre_norm:
        hv, ha = (F.layer_norm(x.float().double(), x.shape[-1:], eps=1e-6) for x in (video, audio))
    new_video, new_audio = video.clone(), audio.clone()
    for b in range(len(video)):
        clip_v, clip_a = hv[b, refs[0] :], ha[b, refs[1] :]
        for i in range(known[0], len(clip_v)):
            context = naive_context_a2v(config, clip_a, i, len(clip_v))
            for s in range(video.shape[2]):
                update = naive_attention(module.a2v, clip_v[i, s], context)
                new_video[b, refs[0] + i, s] = video[b, refs[0] + i, s] + mask[b, refs[0] + i, s] * update
        for j in range(known[1], len(clip_a)):
            context = naive_context_v2a(config, mask[b, refs[0] :] * clip_v, j)
            new_audio[b, refs[1] + j] = audio[b, refs[1] + j] + naive_attention(
                module.v2a, clip_a[j], context
            )
    return new_video, new_audio


def layout(ref: int, known: int, length: int) -> TokenLayout:
    parts = (
        Segment(REFERENCE, -ref, ref),
        Segment(CONDITION, 0, known),
        Segment(NOISY, known, length - known),
    )
    return tuple(s for s in parts if s.length)


def compare(
    config: InteractionConfig, face: str, latents: int, side: int, known_share: float, refs: tuple, seed: int
) -> None:
    """One case: outputs and the gradients of inputs and parameters, module against loop."""
    mels = math.ceil((1 + 4 * (latents - 1)) * config.mels_per_frame)
    known = (min(int(known_share * latents), latents - 1), min(int(known_share * mels), mels - 1))
    module = random_module(small(config, face), seed)
    generator = torch.Generator().manual_seed(seed)
    results = []
    for way in ("module", "loop"):
        generator.manual_seed(seed)
        module.zero_grad()
        video = torch.randn(
            2, refs[0] + latents, side, 16, generator=generator, dtype=torch.float64, requires_grad=True
        )
        audio = torch.randn(
            2, refs[1] + mels, 12, generator=generator, dtype=torch.float64, requires_grad=True
        )
        if way == "module":
            tables = align(
                small(config, face), layout(refs[0], known[0], latents), layout(refs[1], known[1], mels), CPU
            )
            out_v, out_a, _ = module(video, audio[:, :, None], tables)
            out_a = out_a.squeeze(2)
        else:
            out_v, out_a = naive(module, video, audio, refs, known)
        probes = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (out_v, out_a)]
        ((out_v * probes[0]).mean() + (out_a * probes[1]).mean()).backward()
        grads = [video.grad, audio.grad, *(p.grad for p in module.parameters())]
        results.append([out_v.detach(), out_a.detach(), *(g for g in grads if g is not None)])
    assert len(results[0]) == len(results[1])
    for ours, theirs in zip(*results, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5


ALIGNERS = ("sgi", "sti", "ati")


@pytest.mark.parametrize("a2v", ALIGNERS)
@pytest.mark.parametrize("v2a", ALIGNERS)
@pytest.mark.parametrize("k", [MELS_PER_FRAME, Fraction(2)], ids=["fractional k", "integer k"])
@pytest.mark.parametrize("positions", ["none", "time"])
def test_every_aligner_pair_equals_naive_loop(a2v: Any, v2a: Any, k: Fraction, positions: Any) -> None:
    config = InteractionConfig(a2v=a2v, v2a=v2a, window=2, mels_per_frame=k, positions=positions)
    compare(config, "decayed", latents=3, side=2, known_share=0, refs=(1, 2), seed=1)


@given(
    latents=st.integers(1, 4),
    side=st.integers(1, 3),
    window=st.integers(0, 3),
    unit=st.sampled_from(["frame", "latent"]),
    over=st.sampled_from(["frame", "latent"]),
    k=st.sampled_from([Fraction(1), Fraction(3), Fraction(3, 2), Fraction(25, 16), MELS_PER_FRAME]),
    known=st.sampled_from([0.0, 0.4, 0.7]),
    face=st.sampled_from(["none", "decayed"]),
    pre_norm=st.booleans(),
    positions=st.sampled_from(["none", "time"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_ati_equals_naive_loop_on_random_shapes(
    latents: int,
    side: int,
    window: int,
    unit: Any,
    over: Any,
    k: Fraction,
    known: float,
    face: str,
    pre_norm: bool,
    positions: Any,
    seed: int,
) -> None:
    span = 1 + 4 * (latents - 1) if unit == "frame" else latents
    config = InteractionConfig(
        window=min(window, span - 1),
        window_unit=unit,
        interpolate_over=over,
        mels_per_frame=k,
        pre_norm=pre_norm,
        positions=positions,
    )
    compare(config, face, latents, side, known, refs=(seed % 2, seed % 3), seed=seed)


def test_latent_zero_owns_a_quarter_block() -> None:
    config = InteractionConfig(a2v="sti", mels_per_frame=Fraction(6))
    table = audio_windows(config, layout(0, 0, 3), layout(0, 0, 54))
    seen = table.bias.isfinite().sum(dim=-1).flatten()
    assert seen.tolist() == [6, 24, 24]


def test_replicated_border_blocks_are_counted() -> None:
    config = InteractionConfig(window=1, window_unit="latent", mels_per_frame=Fraction(1))
    table = audio_windows(config, layout(0, 0, 3), layout(0, 0, 9))
    weights = table.bias.exp().flatten(1)
    slots = zip(table.index.view(3, -1)[0].tolist(), weights[0].tolist(), strict=True)
    assert [slot for slot in slots if slot[1]] == [
        (0, pytest.approx(2.0)),
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 1.0),
    ]
    assert weights.sum(dim=1).tolist() == pytest.approx([2 + 4, 1 + 4 + 4, 4 + 4 * 2])


def test_condition_and_noisy_frames_of_same_time_are_both_keys() -> None:
    config = InteractionConfig(a2v="sti", v2a="ati", mels_per_frame=Fraction(1), positions="none")
    both = (Segment(CONDITION, 0, 2), Segment(NOISY, 0, 2))
    audio_layout = (Segment(CONDITION, 0, 5), Segment(NOISY, 0, 5))
    model = small(config, "none")
    module = random_module(model, 3)
    video, audio = (
        torch.randn(1, 4, 2, 16, dtype=torch.float64),
        torch.randn(1, 10, 1, 12, dtype=torch.float64),
    )
    out_v, out_a, _ = module(video, audio, align(model, both, audio_layout, CPU))
    hv, ha = (F.layer_norm(x.float(), x.shape[-1:], eps=1e-6).double()[0] for x in (video, audio))
    ha = ha[:, 0]
    expected = naive_attention(module.a2v, hv[2, 1], [(1.0, ha[[0, 5]], None)])
    assert (out_v[0, 2, 1] - video[0, 2, 1] - expected).abs().max() <= 1e-5
    # mel 0 lies in the only frame of latent 0, at its start; both copies of latent 0 are keys
    expected = naive_attention(module.v2a, ha[5], [(1.0, torch.cat([hv[0], hv[2]]), None)])
    assert (out_a[0, 5, 0] - audio[0, 5, 0] - expected).abs().max() <= 1e-5
    assert torch.equal(out_v[:, :2], video[:, :2])
    assert torch.equal(out_a[:, :5], audio[:, :5])


def outputs(positions: Any, flipped: slice, video: TokenLayout, audio: TokenLayout) -> tuple[Tensor, Tensor]:
    """Both streams for one module and one random input whose mel frames `flipped` are reversed."""
    model = small(InteractionConfig(window=2, mels_per_frame=Fraction(1), positions=positions), "none")
    generator = torch.Generator().manual_seed(5)
    length = [sum(s.length for s in part) for part in (video, audio)]
    video_tokens = torch.randn(1, length[0], 2, 16, generator=generator, dtype=torch.float64)
    mels = torch.randn(1, length[1], 1, 12, generator=generator, dtype=torch.float64)
    mels[:, flipped] = mels[:, flipped].flip(1)
    return random_module(model, 4)(video_tokens, mels, align(model, video, audio, CPU))[:2]


def test_only_positions_distinguish_early_from_late_audio() -> None:
    clip = layout(0, 0, 3), layout(0, 0, 9)
    for positions, same in (("none", True), ("time", False)):
        # latent 1 covers frames 1 to 4; its window of 2 is frames -1 to 6: reversing 1 to 6 keeps the set
        forward, reversed_order = (
            outputs(positions, flipped, *clip)[0][0, 1] for flipped in (slice(0, 0), slice(1, 7))
        )
        assert (torch.allclose(forward, reversed_order, atol=1e-9)) is same


@pytest.mark.parametrize("positions", ["none", "time"])
def test_shifting_the_clip_in_time_changes_nothing(positions: Any) -> None:
    now, later = (
        outputs(positions, slice(0, 0), (Segment(NOISY, latent, 3),), (Segment(NOISY, 4 * latent - 3, 12),))
        for latent in (1, 200)
    )
    for ours, theirs in zip(now, later, strict=True):
        # sines are kept in fp32
        assert (ours - theirs).abs().max() <= 1e-5


def test_window_larger_than_clip_names_the_field() -> None:
    for unit, window, ok in (("frame", 9, 8), ("latent", 3, 2)):
        with pytest.raises(UserError, match=r"interaction\.window"):
            audio_windows(
                InteractionConfig(window=window, window_unit=unit), layout(1, 0, 3), layout(0, 0, 53)
            )
        audio_windows(InteractionConfig(window=ok, window_unit=unit), layout(1, 0, 3), layout(0, 0, 53))


def test_layouts_out_of_order_are_refused() -> None:
    audio_layout = layout(0, 0, 53)
    for bad in (
        (Segment(NOISY, 0, 2), Segment(CONDITION, 2, 1)),
        (Segment(CONDITION, 0, 2), Segment(REFERENCE, -1, 1)),
        (Segment(REFERENCE, -1, 1),),
    ):
        with pytest.raises(UserError, match="layout"):
            align(small(InteractionConfig(window=1), "none"), bad, audio_layout, CPU)


def test_face_mask_matches_its_equation() -> None:
    head, video = FaceMask(8, 1e-6), torch.randn(2, 3, 4, 8)
    torch.nn.init.normal_(head.norm.weight)
    torch.nn.init.normal_(head.norm.bias)
    mask = head(video)
    assert mask.shape == (2, 3, 4, 1)
    x = video[1, 2, 3]
    normed = (x - x.mean()) / math.sqrt(x.var(unbiased=False) + 1e-6)
    logit = head.linear.weight[0] @ (head.norm.weight * normed + head.norm.bias) + head.linear.bias[0]
    assert mask[1, 2, 3, 0].item() == pytest.approx(1 / (1 + math.exp(-logit.item())), abs=1e-6)
