"""What goes in and out of an engine: read from it, and named by the receipt beside its plan."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optimizer.errors import StageError
from optimizer.runtime.execution import Tensors
from optimizer.runtime.profiles import Profile
from optimizer.types import TensorSpec

# TensorRT's names of data types and numpy's; the others (BF16, FP8, INT4, FP4) have no numpy type.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
RECEIPT = "engine.json"  # beside the plan: names the axes, which a plan knows only as -1


def read_receipt(plan: Path) -> dict[str, Any]:
    """Return what stands in the receipt beside a plan; nothing where there is none.

    Raises: StageError when it is no JSON.
    """
    path = plan.with_name(RECEIPT)
    if not path.is_file():
        return {}
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise StageError(f"is no JSON: {error}", where=str(path)) from error
    return document


def register_plugins(trt: Any, package: str) -> None:
    """Register the plugins that the parser of `tensorrt` writes for some operators, RoiAlign among them.

    Needed once a process, before a graph is parsed and before a plan is opened; a repeated call changes nothing. The
    lean runtime has none of them. TensorRT-RTX parses and opens what it takes without.
    """
    register = getattr(trt, "init_libnvinfer_plugins", None)
    if package == "tensorrt" and register is not None:
        register(None, "")  # a logger would be kept for the life of the process


def holds_host_code(receipt: Mapping[str, Any]) -> bool:
    """Tell whether the plan contains a lean runtime: code, which TensorRT runs only where it was told to trust it."""
    options = receipt.get("options")
    return isinstance(options, Mapping) and bool(options.get("version_compatible"))


def describe(trt: Any, engine: Any, receipt: Mapping[str, Any], where: str) -> Tensors:
    """Read tensors and profiles from the engine; names of axes come from its receipt, which must agree with it.

    Raises: StageError when it does not, or a tensor has a type or layout that numpy cannot hold.
    """
    named = {
        spec["name"]: TensorSpec.from_json(spec) for kind in ("inputs", "outputs") for spec in receipt.get(kind, ())
    }
    inputs, outputs, open_inputs = [], [], []
    for position in range(engine.num_io_tensors):
        name = engine.get_tensor_name(position)
        spec = _spec(trt, engine, name, named.get(name), where)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            inputs.append(spec)
            if -1 in tuple(engine.get_tensor_shape(name)):
                open_inputs.append(name)
        else:
            outputs.append(spec)
    host = {
        spec.name for spec in (*inputs, *outputs) if engine.get_tensor_location(spec.name) == trt.TensorLocation.HOST
    }
    profiles = tuple(_profile(engine, open_inputs, index) for index in range(engine.num_optimization_profiles))
    return Tensors(_in_order(inputs, named), _in_order(outputs, named), frozenset(host), profiles)


def _profile(engine: Any, names: list[str], index: int) -> Profile:
    def shapes(name: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(int(size) for size in dims) for dims in engine.get_tensor_profile_shape(name, index))

    return {name: (low, opt, high) for name in names for low, opt, high in [shapes(name)]}


def _spec(trt: Any, engine: Any, name: str, named: TensorSpec | None, where: str) -> TensorSpec:
    kind = engine.get_tensor_dtype(name).name
    shape = tuple(engine.get_tensor_shape(name))
    if kind not in _DTYPES:
        raise StageError(f"tensor '{name}' is {kind}, which numpy cannot hold", where=where)
    if engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
        raise StageError(f"tensor '{name}' is not in linear format", where=where)
    axes: tuple[int | str, ...] = tuple(f"{name}_axis{i}" if size == -1 else size for i, size in enumerate(shape))
    if named is None:
        return TensorSpec(name, _DTYPES[kind], axes)
    same_rank = len(named.shape) == len(shape)
    if not same_rank or named.dtype != _DTYPES[kind] or not all(map(_fits, named.shape, shape)):
        raise StageError(
            f"tensor '{name}' is {_DTYPES[kind]}{list(shape)} in the engine and {named.dtype}{list(named.shape)} "
            f"in {RECEIPT}: they do not belong together",
            where=where,
        )
    # A name for the axes that the engine leaves open; where it knows the size, the size.
    return TensorSpec(name, named.dtype, tuple(map(_axis, named.shape, shape)))


def _fits(named: int | str, size: int) -> bool:
    return isinstance(named, str) or size in (-1, named)


def _axis(named: int | str, size: int) -> int | str:
    return named if size == -1 else size


def _in_order(specs: list[TensorSpec], named: Mapping[str, TensorSpec]) -> tuple[TensorSpec, ...]:
    """TensorRT lists tensors in its own order; the receipt has the model's."""
    order = {name: position for position, name in enumerate(named)}
    return tuple(sorted(specs, key=lambda spec: order.get(spec.name, len(order))))
