"""The number of operations does not grow with samples or frames, and no value is read on the host."""

from collections.abc import Callable
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from uniavgen.train.batch import LatentBatch
from uniavgen.train.config import ObjectiveConfig
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import prepare_inputs
from uniavgen.train.tasks import Task

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "item", "equal", "is_nonzero")
"""Operations whose result's value or shape the host must wait for."""


class Operations(TorchDispatchMode):
    """Names of all operations, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", list(Task))
@pytest.mark.parametrize("aligners", [("ati", "ati"), ("sti", "sti"), ("sgi", "sgi")])
def test_operation_count_is_constant_and_no_host_sync(
    task: Task,
    aligners: tuple[str, str],
    make_batch: Callable[..., LatentBatch],
    make_config: Callable[..., ModelConfig],
) -> None:
    config = make_config(interaction={"a2v": aligners[0], "v2a": aligners[1], "positions": "time"})
    model, records = DualBranch(config), []
    for size, latents in ((2, 5), (3, 9)):
        draw = Draw(3, 0, tuple(range(size)))
        data = prepare_inputs(
            make_batch(size=size, latents=latents), task, draw, ObjectiveConfig(), config.face
        )
        tables = model.tables(data.video, data.audio)
        with Operations() as operations:
            model.run(data.video, data.audio, tables, checkpointing=False)
        records.append(operations.names)
    computed = [
        [name for name in names if name not in ("view", "_unsafe_view", "clone", "expand")]
        for names in records
    ]
    assert computed[0] == computed[1]
    assert not set(records[0]) & set(WAITS)
