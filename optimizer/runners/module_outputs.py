"""What every submodule of a PyTorch module returns on one feed: an exported graph is held against it part by part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.runtime.session import Array

if TYPE_CHECKING:
    import torch


def module_outputs(folder: Path, feed: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the outputs by name, and by path those of submodules that are called once and return one tensor.

    Raises: StageError when the checkpoint does not fit or forward() fails.
    """
    import torch

    from optimizer.checkpoint import load_module
    from optimizer.imports import importable, user_code

    loaded = load_module(folder)
    calls: dict[str, list[Any]] = {}
    hooks = [
        module.register_forward_hook(lambda _, __, result, path=path: calls.setdefault(path, []).append(_kept(result)))
        for path, module in loaded.module.named_modules()
        if path
    ]
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in feed.items()}
    try:
        where = f"model {type(loaded.module).__name__}"
        with torch.inference_mode(), importable(loaded.folder), user_code(where, loaded.folder):
            outputs = loaded(tensors)
    finally:
        for hook in hooks:
            hook.remove()
    once = {path: seen[0] for path, seen in calls.items() if len(seen) == 1 and seen[0] is not None}
    return {name: tensor.numpy() for name, tensor in outputs.items()}, once


def _kept(result: torch.Tensor | object) -> Array | None:
    """Copy a single tensor: the next module may work in place."""
    import torch

    if not isinstance(result, torch.Tensor) or result.dtype == torch.bfloat16:
        return None
    array: Array = result.detach().clone().numpy()
    return array
