"""MMAudio's network in plain numpy, float64, from a dictionary in the layout of its released checkpoints.

Written from the description of the released code, with loops and explicit index arithmetic, and shares no
code with the package. Time and velocity run as there: 0 is noise, 1 is data, the velocity is data - noise.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = Mapping[str, Array]


def sigmoid_linear(x: Array) -> Array:
    """SiLU."""
    return x / (1 + np.exp(-x))


def selu(x: Array) -> Array:
    return 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * (np.exp(x) - 1))


def layer_norm(x: Array) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)


def rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + np.finfo(np.float32).eps) * weight


def affine(x: Array, state: State, name: str) -> Array:
    """Linear layer, or convolution over tokens with zeros outside, of x [L, C]."""
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    if weight.ndim == 2:
        out = x @ weight.T
    else:
        kernel = weight.shape[2]
        out = np.zeros((len(x), weight.shape[0]))
        for token in range(len(x)):
            for tap in range(kernel):
                source = token + tap - kernel // 2
                if 0 <= source < len(x):
                    out[token] += weight[:, :, tap] @ x[source]
    return out if bias is None else out + bias


def swiglu(x: Array, state: State, name: str) -> Array:
    gate = sigmoid_linear(affine(x, state, f"{name}.w1")) * affine(x, state, f"{name}.w3")
    return affine(gate, state, f"{name}.w2")


def turn(x: Array, positions: Array) -> Array:
    """Rotate pairs (2i, 2i + 1) of x [L, d] by position * 10000^(-2i / d), as complex numbers."""
    width = x.shape[1]
    angle = positions[:, None] * 10_000.0 ** (-np.arange(0, width, 2) / width)
    turned = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * angle)
    out = np.empty_like(x)
    out[:, 0::2], out[:, 1::2] = turned.real, turned.imag
    return out


def modulation(c: Array, state: State, name: str, rows: int) -> list[Array]:
    return np.split(affine(sigmoid_linear(c), state, f"{name}.adaLN_modulation.1"), rows, axis=-1)


def heads_of(
    x: Array, state: State, name: str, heads: int, positions: Array | None
) -> tuple[list[Array], list[Array], list[Array]]:
    """Queries, keys, values of each head: output channel (head * d + i) * 3 + j is j-th of q, k, v."""
    flat = affine(x, state, f"{name}.attn.qkv")
    width = flat.shape[1] // heads // 3
    q, k, v = [], [], []
    for head in range(heads):
        first = head * width * 3
        q_h, k_h, v_h = (flat[:, [first + 3 * i + j for i in range(width)]] for j in range(3))
        q_h = rms_norm(q_h, state[f"{name}.attn.q_norm.weight"])
        k_h = rms_norm(k_h, state[f"{name}.attn.k_norm.weight"])
        if positions is not None:
            q_h, k_h = turn(q_h, positions), turn(k_h, positions)
        q.append(q_h)
        k.append(k_h)
        v.append(v_h)
    return q, k, v


def attention(q: list[Array], k: list[Array], v: list[Array]) -> Array:
    heads = []
    for q_h, k_h, v_h in zip(q, k, v, strict=True):
        scores = q_h @ k_h.T / np.sqrt(q_h.shape[1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v_h)
    return np.concatenate(heads, axis=1)


def rest_of_block(x: Array, attended: Array, rows: list[Array], state: State, name: str) -> Array:
    x = x + rows[2] * affine(attended, state, f"{name}.linear1")
    return x + rows[5] * swiglu(layer_norm(x) * (1 + rows[4]) + rows[3], state, f"{name}.ffn")


def joint_block(
    state: State,
    name: str,
    heads: int,
    latent: Array,
    clip: Array,
    text: Array,
    c_g: Array,
    c_f: Array,
    *,
    last: bool,
) -> tuple[Array, Array, Array]:
    """One joint block: audio under c_f, clip and text under c_g, clip's positions stretched to audio's."""
    streams = {"latent": (latent, c_f), "clip": (clip, c_g), "text": (text, c_g)}
    positions = {
        "latent": np.arange(len(latent), dtype=float),
        "clip": np.arange(len(clip)) * len(latent) / len(clip),
        "text": None,
    }
    rows, parts = {}, []
    for stream, (x, c) in streams.items():
        block = f"{name}.{stream}_block"
        rows[stream] = modulation(c, state, block, 2 if last and stream != "latent" else 6)
        h = layer_norm(x) * (1 + rows[stream][1]) + rows[stream][0]
        parts.append(heads_of(h, state, block, heads, positions[stream]))
    q, k, v = ([np.concatenate(p) for p in zip(*(part[i] for part in parts), strict=True)] for i in range(3))
    split = np.split(attention(q, k, v), np.cumsum([len(latent), len(clip)]))
    out = []
    for (stream, (x, _)), attended in zip(streams.items(), split, strict=True):
        done = last and stream != "latent"
        out.append(x if done else rest_of_block(x, attended, rows[stream], state, f"{name}.{stream}_block"))
    return out[0], out[1], out[2]


def fused_block(state: State, name: str, heads: int, x: Array, c_f: Array) -> Array:
    rows = modulation(c_f, state, name, 6)
    h = layer_norm(x) * (1 + rows[1]) + rows[0]
    q, k, v = heads_of(h, state, name, heads, np.arange(len(x), dtype=float))
    return rest_of_block(x, attention(q, k, v), rows, state, name)


def time_embedding(state: State, t: float) -> Array:
    """Cosines first; the time in 0..1 is not multiplied."""
    width = state["t_embed.mlp.0.weight"].shape[1]
    angle = t * 10_000.0 ** (-2 * np.arange(width // 2) / width)
    features = np.concatenate([np.cos(angle), np.sin(angle)])[None]
    return affine(sigmoid_linear(affine(features, state, "t_embed.mlp.0")), state, "t_embed.mlp.2")


def sync_at_latents(state: State, sync: Array, length: int) -> Array:
    """Segment positions, projection, and the nearest feature for each audio latent."""
    segment = state["sync_pos_emb"][0, 0]
    sync = sync + np.concatenate([segment] * (len(sync) // len(segment)))
    x = swiglu(selu(affine(sync, state, "sync_input_proj.0")), state, "sync_input_proj.2")
    # PyTorch computes the place in fp32, which decides where it is a whole number
    scale = np.float32(len(x)) / np.float32(length)
    places = [int(np.floor((np.float32(i) + np.float32(0.5)) * scale)) for i in range(length)]
    return np.stack([x[min(len(x) - 1, place)] for place in places])


def conditions(
    state: State, t: float, clip: Array, text: Array, sync: Array, length: int
) -> tuple[Array, Array]:
    """c_g [1, D] and c_f [N, D] from projected clip and text tokens, and synchronisation features."""
    pooled = affine(clip.mean(0, keepdims=True), state, "clip_cond_proj")
    pooled = pooled + affine(text.mean(0, keepdims=True), state, "text_cond_proj")
    c_g = time_embedding(state, t) + swiglu(pooled, state, "global_cond_mlp")
    return c_g, c_g + sync_at_latents(state, sync, length)


def mmaudio_velocity(
    state: State, heads: int, x: Array, t: float, clip: Array, sync: Array, text: Array
) -> Array:
    """Velocity data - noise [N, C] of normalised latents x [N, C] at time t, 1 for data (first weights)."""
    latent = swiglu(selu(affine(x, state, "audio_input_proj.0")), state, "audio_input_proj.2")
    clip = swiglu(affine(clip, state, "clip_input_proj.0"), state, "clip_input_proj.1")
    text = swiglu(affine(text, state, "text_input_proj.0"), state, "text_input_proj.1")
    c_g, c_f = conditions(state, t, clip, text, sync, len(x))
    joint = len({key.split(".")[1] for key in state if key.startswith("joint_blocks.")})
    fused = len({key.split(".")[1] for key in state if key.startswith("fused_blocks.")})
    for i in range(joint):
        last = i == joint - 1
        latent, clip, text = joint_block(
            state, f"joint_blocks.{i}", heads, latent, clip, text, c_g, c_f, last=last
        )
    for i in range(fused):
        latent = fused_block(state, f"fused_blocks.{i}", heads, latent, c_f)
    shift, scale = modulation(c_g, state, "final_layer", 2)  # the global condition
    return affine(layer_norm(latent) * (1 + scale) + shift, state, "final_layer.conv")
