"""What padding costs the audio stage: its share of the loss, and the loss on speech with and without it.

    python tests/benchmarks/train/padding.py [--shards demo-output/corpus/shards] [--frames 81]
                                             [--steps 200]

Parts of 1 to 4 s are cut from the clips of a corpus and padded to a window, as short utterances are.
Prints the share of the initial loss that lies on padding, then trains the audio branch of the preset `tiny`
twice from the same weights on the same draws: with padding scored and attended to (releases to 0.5), and
ignored. The loss on speech frames is that of held-out utterances at fixed diffusion times.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.sample import Sample, decode_audio
from uniavgen.shards.timing import SAMPLE_RATE, samples_for_frames
from uniavgen.train.batch import LatentBatch
from uniavgen.train.codec.registry import load_codecs
from uniavgen.train.config import ObjectiveConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import Crop
from uniavgen.train.data.loader import CropEncoder
from uniavgen.train.diagnostics.validation import fixed_objective
from uniavgen.train.flow_matching import Draw, velocity_loss
from uniavgen.train.model.config import FaceConfig, ModelConfig
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import compute_losses, prepare_inputs
from uniavgen.train.tasks import Task

BATCH = 4
TIMES = (0.2, 0.5, 0.8)
LR = 1e-3


def utterance(sample: Sample, waveform: np.ndarray, config: DataConfig, random: np.random.Generator) -> Crop:
    """A random part of 1 to 4 s, padded to the window."""
    length = min(int(random.uniform(1, 4) * SAMPLE_RATE), len(waveform), samples_for_frames(config.frames))
    first = int(random.integers(len(waveform) - length + 1))
    padded = np.zeros(samples_for_frames(config.frames), np.float32)
    padded[:length] = waveform[first : first + length]
    reference = np.resize(waveform, samples_for_frames(config.reference_frames))
    return Crop(sample.key, 0, padded, reference, sample.meta.transcript, "", audio_samples=length)


def ignoring(batch: LatentBatch, ignored: bool) -> LatentBatch:
    return batch if ignored else replace(batch, mel_lengths=None)


@torch.no_grad()
def squared_errors(
    model: DualBranch, batch: LatentBatch, ignored: bool, time_: float
) -> tuple[Tensor, Tensor]:
    """Loss of the speech frames, and of the padding, of each sample at one diffusion time."""
    objective = fixed_objective(ObjectiveConfig(), {Task.JOINT: 1}, time_)
    draw = Draw(1, 2**40, tuple(range(len(batch.keys))))
    inputs = prepare_inputs(ignoring(batch, ignored), Task.JOINT, draw, objective, FaceConfig())
    out = model(None, inputs.audio).audio
    assert out is not None
    assert batch.mel_lengths is not None
    speech = torch.arange(out.shape[2])[None] < batch.mel_lengths[:, None]
    return velocity_loss(out, inputs.audio_target, speech), velocity_loss(out, inputs.audio_target, ~speech)


def loss_on_speech(model: DualBranch, batch: LatentBatch, ignored: bool) -> float:
    losses = [squared_errors(model, batch, ignored, time_)[0].mean() for time_ in TIMES]
    return float(torch.stack(losses).mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", default="demo-output/corpus/shards")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = DataConfig(frames=options.frames)
    stream, random = SampleStream(options.shards, "train"), np.random.default_rng(0)
    encoder = CropEncoder(config, load_codecs(config.codecs, with_video=False, device="cpu"))
    samples = [stream.sample_by_index(index) for index in range(len(stream))]
    waveforms = [decode_audio(sample.audio) for sample in samples]

    def batch(size: int) -> LatentBatch:
        chosen = random.integers(len(samples), size=size)
        return encoder.encode([utterance(samples[i], waveforms[i], config, random) for i in chosen])

    held_out, batches = batch(16), [batch(BATCH) for _ in range(options.steps)]
    assert held_out.mel_lengths is not None
    torch.manual_seed(0)
    start = DualBranch(ModelConfig.tiny())
    lengths = held_out.mel_lengths.double()
    speech, padding = squared_errors(start, held_out, ignored=False, time_=0.5)
    on_speech, on_padding = (speech * lengths).sum(), (padding * (config.mels - lengths)).sum()
    print(f"{len(samples)} clips; {1 - lengths.mean() / config.mels:.0%} of the frames are padding")
    print(f"share of the initial loss on padding: {on_padding / (on_speech + on_padding):.0%}")
    for ignored in (False, True):
        model = DualBranch(ModelConfig.tiny())
        model.load_state_dict(start.state_dict())
        optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
        before, began = loss_on_speech(model, held_out, ignored), time.process_time()
        for step, of_step in enumerate(batches):
            draw = Draw(0, step, tuple(range(BATCH)))
            losses = compute_losses(
                model,
                ignoring(of_step, ignored),
                Task.JOINT,
                draw,
                ObjectiveConfig(),
                FaceConfig(),
                0.0,
            )
            optimizer.zero_grad()
            losses["total"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        seconds = (time.process_time() - began) / max(1, len(batches))
        after = loss_on_speech(model, held_out, ignored)
        name = "ignored" if ignored else "scored"
        print(
            f"padding {name}: loss on speech {before:.3f} -> {after:.3f}, {seconds * 1000:.0f} ms CPU a step"
        )


if __name__ == "__main__":
    main()
