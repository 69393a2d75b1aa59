"""The names of devices: `cpu` and `cuda:N`."""

from __future__ import annotations

import re

from optimizer.errors import UsageError

_CUDA = re.compile(r"cuda(?::(\d+))?")


def cuda_index(device: str) -> int:
    """Return N of `cuda:N`; `cuda` alone is the first GPU.

    Raises: UsageError for any other name.
    """
    found = _CUDA.fullmatch(device)
    if found is None:
        raise UsageError(f"'{device}' is no device (allowed: cpu, cuda:N with N = 0, 1, ...)", where="device")
    return int(found.group(1) or 0)
