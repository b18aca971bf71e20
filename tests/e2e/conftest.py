"""One run of the demo, shared by every test that looks at what came of it."""

import pytest
from running import Demo, uniavgen


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    return Demo(folder, uniavgen("demo", "--folder", folder))
