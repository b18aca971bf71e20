"""Ablation tables and statistics: rows, keys, orders of the paper, verdicts computed by hand."""

import hashlib
import itertools
import json

import pytest

from uniavgen.shards.errors import UserError
from uniavgen.train.ablation.config import AblateConfig, WorldConfig
from uniavgen.train.ablation.experiment import lr_at, task_of
from uniavgen.train.ablation.tables import RECIPE, ROLES, TABLES, Experiment, experiment, experiments
from uniavgen.train.ablation.verdict import compare, confidence_positive, interval
from uniavgen.train.model.config import InteractionConfig
from uniavgen.train.tasks import PAPER_MIX, Task

CONFIG = AblateConfig(tables=tuple(TABLES))
POSITIONS = [row.name for row in TABLES["positions"].rows]
AS_BASE = f"ATI / ATI, {InteractionConfig().positions}"


def test_equal_experiments_of_different_tables_have_one_key() -> None:
    base = [
        experiment(CONFIG, TABLES[table].rows[at], 0).key
        for table, at in (
            ("interaction", 4),
            ("face", 3),
            ("layers", 3),
            ("position", 2),
            ("strategy", 0),
            ("guidance", 0),
            ("positions", POSITIONS.index(AS_BASE)),
            ("timesteps", 0),
        )
    ]
    assert len(set(base)) == 1
    keys = {each.key for each in experiments(CONFIG).values()}
    assert len(keys) == 3 * (5 + 3 + 3 + 2 + 2 + 3 + 4 + 1)
    trainings = {each.training.key for each in experiments(CONFIG).values()}
    assert len(trainings) == 3 * (5 + 3 + 3 + 2 + 2 + 4 + 1)
    assert len({each.training.begins_with.key for each in experiments(CONFIG).values()}) == 3


def test_results_of_older_releases_keep_their_keys() -> None:
    """Digests that release 0.4 computed, before timesteps by branch and other fields were added."""
    keys = [experiment(AblateConfig(), row, 1).key for row in TABLES["guidance"].rows]
    assert keys == ["f194f6bcbd45", "c5b3a8d18edf", "4e86a52035f1", "6e62fcea3313"]


@pytest.mark.parametrize(
    "change", [{"steps": 3}, {"clips": 9}, {"world": WorldConfig(lead_s=0.2)}, {"lr": 1e-4}]
)
def test_key_depends_on_every_setting_and_the_seed(change: dict) -> None:
    row = TABLES["interaction"].rows[0]
    assert experiment(CONFIG, row, 0).key == experiment(AblateConfig(seeds=5), row, 0).key
    assert experiment(CONFIG, row, 0).key != experiment(AblateConfig(**change), row, 0).key
    assert experiment(CONFIG, row, 0).key != experiment(CONFIG, row, 1).key


def test_key_survives_serialisation() -> None:
    entry = experiment(CONFIG, TABLES["strategy"].rows[2], 1)
    assert Experiment.model_validate_json(entry.model_dump_json()).key == entry.key


def test_added_field_at_its_earlier_value_keeps_the_key() -> None:
    before, after = (
        experiment(CONFIG, TABLES["positions"].rows[POSITIONS.index(f"ATI / ATI, {value}")], 0)
        for value in ("none", "time")
    )
    document = before.model_dump(mode="json")
    for training in (document["training"], document["training"]["begins_with"]):
        assert training["model"]["interaction"].pop("positions") == "none"
        for branch in ("video", "audio"):
            assert training["model"][branch].pop("fp32_time") is False
            assert training["model"][branch].pop("prediction") == "velocity"
            assert training["model"][branch].pop("places") is None
        objective = training["objective"]
        assert [objective.pop(f"{branch}_timestep") for branch in ("video", "audio")] == [None, None]
        assert (objective.pop("interaction_dropout"), objective.pop("interaction_dropout_text")) == (0, True)
        assert objective["timestep"].pop("shift_tokens") == 0
        assert (objective.pop("weight_bound"), objective.pop("mouth_weight")) == (None, 1)
        assert objective.pop("mel_augmentation") == {"gain": 0, "shift": 0, "noise": 0}
    sampler = document["sampler"]
    assert (sampler["shift"], sampler.pop("audio_shift")) == (None, None)
    sampler["shift"] = 1.0
    text = json.dumps([RECIPE, "Experiment", document], sort_keys=True)
    assert before.key == hashlib.sha256(text.encode()).hexdigest()[:12]
    assert before.key != after.key
    assert before.training.begins_with == after.training.begins_with


def test_rows_differ_only_in_the_setting_of_their_table() -> None:
    rows = {row.name: experiment(CONFIG, row, 0).training.model for row in TABLES["interaction"].rows}
    assert {(model.interaction.a2v, model.interaction.v2a) for model in rows.values()} == {
        ("sgi", "sgi"),
        ("sti", "sti"),
        ("sti", "ati"),
        ("ati", "sti"),
        ("ati", "ati"),
    }
    same = [
        model.model_copy(update={"interaction": rows["ATI / ATI"].interaction}) for model in rows.values()
    ]
    assert all(model == same[0] for model in same)
    modes = [experiment(CONFIG, row, 0).training.model.face.mode for row in TABLES["face"].rows]
    assert modes == ["none", "unsupervised", "fixed", "decayed"]


def test_task_mixes_of_the_training_strategies() -> None:
    config = AblateConfig(steps=400)
    trainings = {row.name: experiment(config, row, 0).training for row in TABLES["strategy"].rows}
    tasks = {name: [task_of(training, step) for step in range(400)] for name, training in trainings.items()}
    assert set(tasks["JGO"]) == {Task.JOINT}
    assert {task: tasks["MTO"].count(task) for task in Task} == {
        task: 40 * share for task, share in PAPER_MIX.items()
    }
    assert set(tasks["JFML"][:300]) == {Task.JOINT}
    assert {task: tasks["JFML"][300:].count(task) for task in Task} == {
        task: 10 * share for task, share in PAPER_MIX.items()
    }


def test_learning_rate_schedule() -> None:
    training = experiment(AblateConfig(steps=100, warmup=10, lr=1.0), TABLES["layers"].rows[0], 0).training
    rates = [lr_at(training, step) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert rates[20] == rates[60] == 1.0
    assert rates[99] == pytest.approx(1 / 30)
    assert all(a >= b for a, b in itertools.pairwise(rates[20:]))


def test_orders_are_those_of_the_paper() -> None:
    orders = TABLES["interaction"].orders()
    assert len(orders) == 10 * len(ROLES)
    assert ("ATI / STI", "STI / ATI", "LS") in orders
    assert ("STI / ATI", "ATI / STI", "TC") in orders
    assert ("fixed", "decayed", "LS") in TABLES["face"].orders()
    assert {pair[0] for pair in TABLES["layers"].orders()} == {"interleaved"}
    assert TABLES["positions"].orders() == []


def test_verdict_on_numbers_computed_by_hand() -> None:
    # differences 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / sqrt(3), t = 3.4641 at 2 degrees of freedom
    verdict = compare("a", "b", "LS", [0.5, 0.7, 0.9], [0.4, 0.5, 0.6])
    assert verdict.difference.mean == pytest.approx(0.2)
    assert verdict.difference.low == pytest.approx(0.2 - 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    # Student's distribution at 2 degrees has a closed form: 1/2 + t / (2 sqrt(2 + t^2))
    t = 0.2 / (0.1 / 3**0.5)
    assert verdict.confidence == pytest.approx(0.5 + t / (2 * (2 + t * t) ** 0.5))
    assert verdict.judgement == "reproduced"
    assert compare("b", "a", "LS", [0.4, 0.5, 0.6], [0.5, 0.7, 0.9]).judgement == "reversed"
    assert compare("a", "b", "LS", [0.5, 0.4, 0.6], [0.45, 0.5, 0.5]).judgement == "undecided"


def test_rows_are_compared_within_seeds() -> None:
    verdict = compare("a", "b", "TC", [0.11, 0.51, 0.91], [0.10, 0.50, 0.90])
    assert verdict.confidence > 0.999
    with pytest.raises(UserError, match="3 seeds, b 2"):
        compare("a", "b", "TC", [1, 2, 3], [1, 2])


def test_equal_values_give_confidence_zero_half_or_one() -> None:
    assert [confidence_positive([x, x]) for x in (-1.0, 0.0, 2.0)] == [0.0, 0.5, 1.0]
    assert interval([2.0, 2.0]).low == 2.0
    with pytest.raises(UserError, match="two values"):
        interval([1.0])
