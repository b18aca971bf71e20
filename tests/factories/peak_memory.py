"""Peak CPU memory from torch's allocator records: exact and independent of the machine's load."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], Any]) -> int:
    """Peak bytes that `work` allocates at once, beyond what was allocated before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    changes = []
    waiting = list(record.profiler.kineto_results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.alloc_size))
    held = peak = 0
    for _, change in sorted(changes, key=lambda found: found[0]):
        held += change
        peak = max(peak, held)
    return peak
