"""NVIDIA's management library, opened for one GPU by CUDA's number."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from optimizer.environment import no_gpu, visible
from optimizer.errors import MissingToolError


@contextlib.contextmanager
def opened(device: str) -> Iterator[tuple[Any, Any]]:
    """Yield the pynvml module and the handle of `cuda:N`, which CUDA_VISIBLE_DEVICES may renumber.

    Raises: MissingToolError when nvidia-ml-py or that GPU is absent.
    """
    try:
        import pynvml
    except ImportError as error:
        raise MissingToolError(
            "needs nvidia-ml-py, which is not installed", where=f"device {device}", hint="pip install nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise MissingToolError(no_gpu(), where=f"device {device}") from error
    try:
        try:
            handle = visible(pynvml, int(device.partition(":")[2] or 0))
        except pynvml.NVMLError as error:
            raise MissingToolError(no_gpu(), where=f"device {device}") from error
        yield pynvml, handle
    finally:
        pynvml.nvmlShutdown()
