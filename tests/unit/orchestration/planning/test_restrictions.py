"""Warnings of weights and data that are not for commercial use."""

import pytest
import torchaudio
from whisperx.alignment import DEFAULT_ALIGN_MODELS_TORCH

from uniavgen.orchestration.config import load_config
from uniavgen.orchestration.planning.restrictions import (
    NON_COMMERCIAL,
    NOT_STATED,
    VOXPOPULI_LANGUAGES,
    ingest_restrictions,
    training_restrictions,
)


def test_default_settings_use_nothing_that_is_restricted() -> None:
    settings = load_config()
    assert ingest_restrictions(settings.ingest) == []
    assert training_restrictions(settings.train) == []


@pytest.mark.parametrize(
    ("assignments", "licences"),
    [
        (["ingest.transcription.align_model=whisperx"], [NON_COMMERCIAL]),
        (["ingest.transcription.align_model=whisperx", "ingest.transcription.language=de"], [NON_COMMERCIAL]),
        (["ingest.transcription.align_model=whisperx", "ingest.transcription.language=en"], []),
        (["ingest.transcription.align_model=facebook/mms-1b-all"], [NON_COMMERCIAL]),
        (["ingest.sync.model=syncnet", "ingest.sync.syncnet_weights=/w"], [NOT_STATED]),
        (["ingest.sync.active_model=light-asd", "ingest.sync.light_asd_weights=/w"], [NOT_STATED]),
    ],
)
def test_restricted_models_of_ingest_are_named(assignments: list[str], licences: list[str]) -> None:
    found = ingest_restrictions(load_config(assignments=assignments).ingest)
    assert [restriction.licence for restriction in found] == licences
    for restriction in found:
        assert restriction.setting in {assignment.partition("=")[0] for assignment in assignments}
        assert "docs/licences.md" in str(restriction)


def test_emilia_is_named_with_its_stage() -> None:
    found = training_restrictions(load_config("paper").train)
    assert [(each.setting, each.licence) for each in found] == [
        ("train.stages.0.emilia.shards", NON_COMMERCIAL)
    ]


def test_languages_with_a_non_commercial_model_are_those_of_the_installed_libraries() -> None:
    restricted = {
        language
        for language, name in DEFAULT_ALIGN_MODELS_TORCH.items()
        if "BY-NC" in (getattr(torchaudio.pipelines, name).__doc__ or "")
    }
    assert restricted == set(VOXPOPULI_LANGUAGES)
