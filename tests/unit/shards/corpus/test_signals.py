"""The table of signals: names, steps and column order."""

import pytest

from uniavgen.ingest.measures.registry import STEPS
from uniavgen.shards.corpus.schema import schema
from uniavgen.shards.corpus.signals import SIGNALS, signals_of


def test_every_signal_names_an_ingest_step() -> None:
    assert {signal.step for signal in SIGNALS.values()} <= {step.name for step in STEPS}


def test_signals_of_all_steps_are_all_signals_in_column_order() -> None:
    steps = {signal.step for signal in SIGNALS.values()}
    assert sorted(name for step in steps for name in signals_of(step)) == sorted(SIGNALS)
    columns = [name for name in schema("clips").names if name in SIGNALS]
    assert columns == list(SIGNALS)
    for step in steps:
        assert list(signals_of(step)) == [name for name in columns if name in signals_of(step)]


def test_signals_of_unknown_step_is_an_error() -> None:
    with pytest.raises(ValueError, match="no signal is measured by the step 'cut'"):
        signals_of("cut")
