"""The dual-branch model: equality with its branches when untrained, references, conditions, size."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from uniavgen.shards.errors import UserError
from uniavgen.train.batch import DualOutput, LatentBatch
from uniavgen.train.config import ObjectiveConfig
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.flops import Shapes, forward_flops
from uniavgen.train.model.objective import TaskInputs, prepare_inputs
from uniavgen.train.model.parts import count_parameters
from uniavgen.train.tasks import Task

MakeBatch = Callable[..., LatentBatch]
MakeConfig = Callable[..., ModelConfig]
Randomised = Callable[..., DualBranch]
POSITIONS = ["none", "time"]


def inputs_for(task: Task, batch: LatentBatch, config: ModelConfig) -> TaskInputs:
    draw = Draw(3, 0, tuple(range(len(batch.keys))))
    return prepare_inputs(
        batch, task, draw, ObjectiveConfig(caption_dropout=0, speech_dropout=0), config.face
    )


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("position", ["before-self-attention", "before-cross-attention", "before-ffn"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_untrained_interaction_changes_nothing_bit_for_bit(
    task: Task,
    position: str,
    positions: str,
    make_batch: MakeBatch,
    make_config: MakeConfig,
    randomised: Randomised,
) -> None:
    config = make_config(interaction={"layers": "all", "position": position, "positions": positions})
    model = randomised(config, keep=("a2v.o", "v2a.o"))
    data = inputs_for(task, make_batch(), config)
    with torch.no_grad():
        both, apart = model(data.video, data.audio), model(data.video, data.audio, interact=False)
        alone = model(data.video, None).video, model(None, data.audio).audio
    assert both.video.abs().max() > 0.1
    for out in (both, apart):
        assert torch.equal(out.video, alone[0])
        assert torch.equal(out.audio, alone[1])


def test_trained_interaction_changes_both_branches(
    make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    config = make_config()
    model, data = randomised(config), inputs_for(Task.JOINT, make_batch(), config)
    with torch.no_grad():
        both, apart = model(data.video, data.audio), model(data.video, data.audio, interact=False)
    assert (both.video - apart.video).abs().max() > 1e-3
    assert (both.audio - apart.audio).abs().max() > 1e-3


def moved(model: DualBranch, data: TaskInputs, branch: str, frames: slice) -> tuple[DualOutput, DualOutput]:
    """Outputs before and after a change of some latent frames of one branch."""
    with torch.no_grad():
        before = model(data.video, data.audio)
        getattr(data, branch).latent[:, :, frames] += 1.0
        return before, model(data.video, data.audio)


@pytest.mark.parametrize("positions", POSITIONS)
def test_reference_audio_skips_interaction(
    positions: str, make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    # the only interaction comes before any self-attention, so sound can reach the picture through it alone
    config = make_config(interaction={"interleave_from": 0, "positions": positions})
    model, data = randomised(config), inputs_for(Task.REFERENCE, make_batch(), config)
    before, after = moved(model, data, "audio", slice(0, 9))
    assert torch.equal(before.video, after.video)
    assert not torch.equal(before.audio, after.audio)
    before, after = moved(model, data, "audio", slice(9, None))
    assert not torch.equal(before.video, after.video)


@pytest.mark.parametrize("positions", POSITIONS)
def test_reference_image_skips_interaction(
    positions: str, make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    config = make_config(interaction={"interleave_from": 0, "positions": positions})
    model, data = randomised(config), inputs_for(Task.JOINT, make_batch(), config)
    before, after = moved(model, data, "video", slice(0, 1))
    assert torch.equal(before.audio, after.audio)
    assert not torch.equal(before.video, after.video)


@pytest.mark.parametrize(
    ("task", "branch", "other"), [(Task.AUDIO_DRIVEN, "audio", "video"), (Task.DUBBING, "video", "audio")]
)
@pytest.mark.parametrize("positions", POSITIONS)
def test_conditions_are_keys_and_stay_unchanged(
    task: Task,
    branch: str,
    other: str,
    positions: str,
    make_batch: MakeBatch,
    make_config: MakeConfig,
    randomised: Randomised,
) -> None:
    config = make_config(interaction={"interleave_from": 0, "positions": positions})
    model, data = randomised(config), inputs_for(task, make_batch(), config)
    before, after = moved(model, data, branch, slice(4, None))
    assert not torch.equal(getattr(before, other), getattr(after, other))
    with torch.no_grad():
        alone = model(data.video, data.audio, interact=False)
    assert torch.equal(getattr(after, branch), getattr(alone, branch))


@pytest.mark.parametrize("positions", POSITIONS)
def test_continuation_condition_tokens_stay_unchanged_in_interaction(
    positions: str, make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    config = make_config(interaction={"layers": "all", "positions": positions})
    model, data = randomised(config), inputs_for(Task.CONTINUATION, make_batch(), config)
    tables = model.tables(data.video, data.audio)
    video, audio = torch.randn(2, 6, 4, 32), torch.randn(2, 100, 1, 24)
    clean_v, clean_a = (int((~mask).sum()) for mask in (data.video_scored, data.audio_scored))
    assert 1 < clean_v < 6
    assert 0 < clean_a < 100
    out_v, out_a, _ = model.interactions["0"](video, audio, tables.alignment)
    assert torch.equal(out_v[:, :clean_v], video[:, :clean_v])
    assert torch.equal(out_a[:, :clean_a], audio[:, :clean_a])
    assert (out_v[:, clean_v:] != video[:, clean_v:]).any(-1).all()
    assert (out_a[:, clean_a:] != audio[:, clean_a:]).any(-1).all()


def test_checkpointing_changes_neither_losses_nor_gradients(
    make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    config = make_config(layers=3, interaction={"positions": "time"})
    model, data, grads = randomised(config), inputs_for(Task.JOINT, make_batch(), config), []
    for checkpointing in (False, True):
        model.zero_grad()
        out = model(data.video, data.audio, checkpointing=checkpointing)
        (out.video.square().mean() + out.audio.square().mean() + out.face_masks.mean()).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_empty_text_is_one_null_token_and_finite(
    make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    config = make_config()
    model, batch = randomised(config), make_batch()
    batch.speech_mask[0] = False
    batch.caption_mask[1] = False
    data = inputs_for(Task.JOINT, batch, config)
    out = model(data.video, data.audio)
    (out.video.sum() + out.audio.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    first = out.audio[0].detach()
    batch.speech_ids[0] += 1
    with torch.no_grad():
        assert torch.equal(model(data.video, data.audio).audio[0], first)


def test_output_does_not_depend_on_other_samples_in_batch(
    make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    config = make_config()
    model, batch = randomised(config), make_batch(size=3)
    data = inputs_for(Task.JOINT, batch, config)
    with torch.no_grad():
        full = model(data.video, data.audio)
        for data_part in (data.video, data.audio):
            for name in ("latent", "timestep", "text", "text_mask"):
                setattr(data_part, name, getattr(data_part, name)[1:2])
        alone = model(data.video, data.audio)
    torch.testing.assert_close(full.video[1], alone.video[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(full.audio[1], alone.audio[0], rtol=1e-4, atol=1e-4)


def test_model_runs_in_bfloat16(make_batch: MakeBatch, make_config: MakeConfig) -> None:
    config = make_config(interaction={"positions": "time"})
    model = DualBranch(config).bfloat16()
    data = inputs_for(Task.JOINT, make_batch(), config)
    out = model(data.video, data.audio)
    assert out.video.dtype == torch.bfloat16
    (out.video.float().sum() + out.face_masks.sum()).backward()


def test_forward_without_any_input_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(UserError, match="at least one"):
        DualBranch(make_config())(None, None)


def test_paper_size_has_7_05_billion_parameters() -> None:
    with torch.device("meta"):
        counts = count_parameters(DualBranch(ModelConfig.paper()))
    print(counts)
    assert counts["total"] == pytest.approx(7.05e9, rel=0.01)
    assert counts["video"] == pytest.approx(5.00e9, rel=0.01)
    assert counts["audio"] == pytest.approx(1.41e9, rel=0.01)
    assert counts["interactions"] == pytest.approx(0.64e9, rel=0.01)


@pytest.mark.parametrize("aligners", [("ati", "ati"), ("sgi", "sgi"), ("sti", "sti")])
def test_flop_formula_agrees_with_torch_counter(
    aligners: tuple[str, str], make_batch: MakeBatch, make_config: MakeConfig
) -> None:
    config = make_config(interaction={"a2v": aligners[0], "v2a": aligners[1], "window": 4})
    data = inputs_for(Task.JOINT, make_batch(size=1, latents=7), config)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        DualBranch(config)(data.video, data.audio)
    mels = data.audio.latent.shape[2]
    shapes = Shapes(latents=8, height=4, width=4, mels=mels, caption_tokens=3, speech_tokens=6)
    assert forward_flops(config, shapes)["total"] == pytest.approx(counter.get_total_flops(), rel=0.05)


@pytest.mark.slow
def test_forward_compiles_without_graph_breaks(
    make_batch: MakeBatch, make_config: MakeConfig, randomised: Randomised
) -> None:
    config = make_config(interaction={"positions": "time"})
    model, data = randomised(config), inputs_for(Task.REFERENCE, make_batch(), config)
    with torch.no_grad():
        expected = model(data.video, data.audio)
    model.run = torch.compile(model.run, backend="eager", fullgraph=True)
    out = model(data.video, data.audio)
    assert (out.video - expected.video).abs().max() < 1e-5
    assert (out.audio - expected.audio).abs().max() < 1e-5
