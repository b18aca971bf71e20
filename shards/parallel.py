"""The same function over many items: in this process, or as Ray tasks on whatever cluster there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from uniavgen.shards.cluster import ray_running
from uniavgen.shards.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

START_RAY_BYTES = 256e6
"""Starting Ray takes as long as reading or writing about this much."""


def worth_ray(items: int, total_bytes: float) -> bool:
    """Whether tasks pay: several items, and enough work for starting Ray unless it runs already."""
    if items <= 1:
        return False
    import ray

    return ray.is_initialized() or total_bytes >= START_RAY_BYTES


def each(function: Callable[[Item], Result], items: Iterable[Item], *, on_ray: bool) -> Iterator[Result]:
    """`function` of every item, in the order in which they get done; items are made only when they can start soon.

    A UserError or OSError of a task is raised here as it is; what has not started then never does.
    """
    if not on_ray:
        yield from map(function, items)
        return
    import ray

    with ray_running():
        task = ray.remote(num_cpus=1)(function)
        limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting, pending = iter(items), list[Any]()
        try:
            while True:
                pending += [task.remote(item) for item in islice(waiting, limit - len(pending))]
                if not pending:
                    return
                ready, pending = ray.wait(pending)
                yield from ray.get(ready)
        except ray.exceptions.RayTaskError as error:
            raise (error.cause if isinstance(error.cause, UserError | OSError) else error) from error
        finally:
            for reference in pending:
                ray.cancel(reference)
