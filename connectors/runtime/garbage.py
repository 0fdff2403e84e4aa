"""Tuning of Python's cycle collector."""

import gc


def collect_rarely() -> None:
    """Tune the cycle collector for batches of thousands of small objects. Call it after all imports.

    With the defaults such a batch triggers full collections, which took a third of a producer's time (bench/) and found few
    cycles.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
