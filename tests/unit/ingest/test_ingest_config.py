"""Configuration of ingest: the old name of a section is accepted, and importing it is cheap."""

import subprocess
import sys

import pytest

from uniavgen.ingest.config import IngestConfig


def test_stages_is_read_as_pools_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="ingest.stages is called ingest.pools"):
        config = IngestConfig.model_validate({"stages": {"speech": {"workers": 4}}})
    assert config.pools.speech.workers == 4
    assert config.pools.sight == IngestConfig().pools.sight
    with pytest.warns(FutureWarning):
        both = IngestConfig.model_validate(
            {**IngestConfig().model_dump(), "stages": {"layout": "split", "cut": {"threads": 2}}}
        )
    assert (both.pools.layout, both.pools.cut.threads, both.pools.cut.num_cpus) == ("split", 2, 0.25)


def test_parameters_are_recorded_under_the_names_of_0_3() -> None:
    assert "stages" in IngestConfig().model_dump(by_alias=True)


def test_importing_the_configuration_loads_no_numpy() -> None:
    program = "import sys, uniavgen.ingest.config; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
