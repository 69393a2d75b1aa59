"""float16 as PyTorch and onnxruntime have it."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from quality_int8 import Sources, feeds  # beside this file
from torch.overrides import TorchFunctionMode

from optimizer.checkpoint import LoadedModule, load_module

Infer = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Half(TorchFunctionMode):  # type: ignore[misc]  # torch's types are skipped
    """Take .to(torch.float32) inside a model for float16, as a model that is meant for half would say it.

    Without it, a mask made in float32 lifts all it touches, and the next product refuses its two types.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.to:
            args = tuple(torch.float16 if a is torch.float32 else a for a in args)
        return function(*args, **(kwargs or {}))


def tensors(feed: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """Return a feed in torch, its floating-point inputs in this type."""
    held = {name: torch.from_numpy(array) for name, array in feed.items()}
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in held.items()}


def _numpy(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tensor.float().numpy() for name, tensor in found.items()}


def _half(sources: Sources, _: pathlib.Path) -> Infer:
    """Return PyTorch's half of the module, by its own kernels for the CPU."""
    return _called(load_module(sources.module))


def _half_folded(sources: Sources, _: pathlib.Path) -> Infer | None:
    """Return the same with normalisations folded into the convolutions before them, as in the graph; None without."""
    from torch.fx.experimental.optimization import fuse

    loaded = load_module(sources.module)
    if not any(isinstance(part, torch.nn.BatchNorm2d) for part in loaded.module.modules()):
        return None
    return _called(dataclasses.replace(loaded, module=fuse(loaded.module)))


def _called(loaded: LoadedModule) -> Infer:
    loaded.module.half()

    def infer(feed: Mapping[str, Any]) -> Mapping[str, Any]:
        with torch.inference_mode(), Half():
            return _numpy(loaded(tensors(feed, torch.float16)))

    return infer


def _autocast(sources: Sources, _: pathlib.Path) -> Infer:
    """Return the module under PyTorch's automatic mixed precision."""
    loaded = load_module(sources.module)

    def infer(feed: Mapping[str, Any]) -> Mapping[str, Any]:
        with torch.inference_mode(), torch.autocast("cpu", torch.float16):
            return _numpy(loaded(tensors(feed, torch.float32)))

    return infer


def _half_exported(sources: Sources, target: pathlib.Path) -> pathlib.Path:
    """Write PyTorch's half of the module as ONNX."""
    loaded = load_module(sources.module)
    loaded.module.half()
    example = tensors(feeds(sources.samples, 1)[0], torch.float16)
    example = {name: tensor.expand(2, *tensor.shape[1:]).clone() for name, tensor in example.items()}
    _export(loaded, example, target)
    return target


def _export(loaded: LoadedModule, example: Mapping[str, Any], target: pathlib.Path) -> None:
    names = [spec.name for spec in loaded.inputs if spec.name not in loaded.keywords]
    axes = tuple({i: a for i, a in enumerate(s.shape) if isinstance(a, str)} for s in loaded.inputs if s.name in names)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with Half(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about torch's own internals
        program = torch.onnx.export(
            loaded.module,
            tuple(example[name] for name in names),
            dynamo=True,
            dynamic_shapes=axes,
            input_names=names,
            output_names=list(loaded.outputs),
            opset_version=20,
            verbose=False,
        )
    program.save(str(target))


def _converted(sources: Sources, target: pathlib.Path) -> pathlib.Path:
    """Convert the graph with onnxruntime's copy of onnxconverter-common's float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(sources.graph), keep_io_types=True), target)
    return target


# tool and form -> what makes it: a graph for the rounding judge, something to call, or None where it does not apply
FLOAT16: dict[tuple[str, str], Callable[[Sources, pathlib.Path], pathlib.Path | Infer | None]] = {
    ("torch", "half on the CPU"): _half,
    ("torch", "half, folded, on the CPU"): _half_folded,
    ("torch", "half, exported"): _half_exported,
    ("torch", "autocast on the CPU"): _autocast,
    ("onnxruntime", "float16"): _converted,
}
