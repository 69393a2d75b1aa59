"""A model folder (`module.json`, the checkpoint, the factory's code) and the nn.Module it describes."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import StageError
from optimizer.imports import importable, load_function, user_code
from optimizer.types import TensorSpec

if TYPE_CHECKING:
    import torch

MODULE_FILE = "module.json"
_SHOWN = 4  # keys listed of each kind when a checkpoint does not fit


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """An nn.Module in eval mode with the names of what goes in and comes out."""

    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    keywords: frozenset[str]
    outputs: tuple[str, ...]

    def __call__(self, feed: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Call the module; positional inputs in order, keyword inputs by name."""
        positional = [feed[s.name] for s in self.inputs if s.name not in self.keywords]
        named = {name: feed[name] for name in self.keywords}
        return self.name_outputs(self.module(*positional, **named))

    def name_outputs(self, result: Any) -> dict[str, torch.Tensor]:
        """Give names to what forward() returned: a tensor, or a tuple, list, mapping or dataclass of them, nested.

        Raises: StageError when there are more or fewer tensors than names.
        """
        tensors = list(_flatten(result))
        if len(tensors) != len(self.outputs):
            shapes = ", ".join(str(list(t.shape)) for t in tensors)
            raise StageError(
                f"forward() returned {len(tensors)} tensors ({shapes}); the recipe names {len(self.outputs)}: "
                f"{', '.join(self.outputs)}",
                where="model.outputs",
                hint="Name every output of forward(), in order.",
            )
        return dict(zip(self.outputs, tensors, strict=True))


def _flatten(result: Any) -> Iterator[torch.Tensor]:
    import torch

    if isinstance(result, torch.Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from _flatten(value)
    elif isinstance(result, tuple | list):
        for value in result:
            yield from _flatten(value)
    elif hasattr(result, "__dataclass_fields__"):
        for name in result.__dataclass_fields__:
            yield from _flatten(getattr(result, name))
    elif result is not None:
        raise StageError(f"forward() returned a {type(result).__name__}, not tensors", where="model.outputs")


def read_description(folder: Path) -> dict[str, Any]:
    """Return `module.json` of a model folder."""
    document: dict[str, Any] = json.loads((folder / MODULE_FILE).read_text())
    return document


def load_module(folder: Path, device: str = "cpu") -> LoadedModule:
    """Build the module, load its weights on `device` and switch it to eval mode.

    Raises: StageError when the checkpoint does not fit, wants to run code, or the factory fails.
    """
    about = read_description(folder)
    checkpoint = folder / about["checkpoint"]
    inputs = tuple(TensorSpec.from_json(i) for i in about["inputs"])
    keywords = frozenset(i["name"] for i in about["inputs"] if i["keyword"])
    if about["kind"] == "exported_program":
        module = _load_exported(checkpoint, inputs, about["trust"])
    else:
        module = _call_factory(folder, about["factory"], about["arguments"])
        state = read_state_dict(checkpoint, key=about["key"], strip_prefix=about["strip_prefix"], trust=about["trust"])
        _load_state(module, state, checkpoint)
        module = module.eval()
    return LoadedModule(module.to(device), inputs, keywords, tuple(about["outputs"]))


def _call_factory(folder: Path, factory: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    import torch

    file, _, name = factory.partition(":")
    function = load_function(folder / file, name)
    with importable(folder), user_code(f"factory {factory}", folder):
        module = function(**arguments)
    if not isinstance(module, torch.nn.Module):
        raise StageError(f"returned a {type(module).__name__}, not an nn.Module", where=f"factory {factory}")
    return module


def _load_exported(path: Path, inputs: tuple[TensorSpec, ...], trust: bool) -> torch.nn.Module:
    """Open a `.pt2`; a program that was exported with fixed shapes cannot serve named axes, whatever it is told.

    torch.export.load falls back to full unpickling where plain weights do not suffice; without trust it may not.
    """
    import torch

    try:
        with contextlib.nullcontext() if trust else _plain_weights_only():
            program = torch.export.load(path)
        module = program.module()
    except pickle.UnpicklingError as error:
        raise _refusal(error, f"checkpoint {path.name}", "Export the program without custom objects.") from error
    except (RuntimeError, ValueError, OSError, KeyError, zipfile.BadZipFile, AssertionError) as error:
        raise StageError(
            f"cannot be read as an exported program: {first_line(error)}",
            where=str(path.name),
            hint="Save it with torch.export.save(torch.export.export(...), 'model.pt2').",
        ) from error
    names = set(program.graph_signature.user_inputs)
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    if len(placeholders) != len(inputs):
        raise StageError(
            f"takes {len(placeholders)} inputs, the recipe names {len(inputs)}",
            where=path.name,
            hint="Name each input.",
        )
    for spec, node in zip(inputs, placeholders, strict=True):
        _check_exported_axes(path, spec, tuple(node.meta["val"].shape))
    return module


@contextlib.contextmanager
def _plain_weights_only() -> Iterator[None]:
    """Make every torch.load refuse what is more than weights, whatever its caller asks for."""
    force, forbid = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = {name: os.environ.pop(name, None) for name in (force, forbid)}
    os.environ[force] = "1"
    try:
        yield
    finally:
        del os.environ[force]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _check_exported_axes(path: Path, spec: TensorSpec, shape: tuple[Any, ...]) -> None:
    if len(shape) != len(spec.shape):
        raise StageError(
            f"input '{spec.name}' has {len(shape)} axes, the recipe gives {len(spec.shape)}", where=path.name
        )
    fixed = [a for a, s in zip(spec.shape, shape, strict=True) if isinstance(a, str) and isinstance(s, int)]
    if fixed:
        axes = ", ".join(f"'{a}'" for a in fixed)
        raise StageError(
            f"was exported with input '{spec.name}' fixed to {list(shape)}; the recipe names the dynamic axis {axes}",
            where=path.name,
            hint="Export it again with dynamic_shapes for that axis, or write the fixed size into the recipe's shape.",
        )


def read_state_dict(
    path: Path, *, key: str | None = None, strip_prefix: str | None = None, trust: bool = False
) -> dict[str, torch.Tensor]:
    """Read the weights of a `.safetensors` file or of a state_dict at any nesting of a torch checkpoint."""
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        state = _find_state(_read_torch(path, trust), key, path)
    if strip_prefix is None:
        return state
    strangers = [k for k in state if not k.startswith(strip_prefix)]
    if strangers:
        raise StageError(
            f"{len(strangers)} of {len(state)} keys do not begin with '{strip_prefix}': {_some(strangers)}",
            where=f"checkpoint {path.name}, model.strip_prefix",
        )
    return {k.removeprefix(strip_prefix): v for k, v in state.items()}


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise StageError(
            f"is not a safetensors file: {first_line(error)}",
            where=f"checkpoint {path.name}",
            hint="Save or fetch it again.",
        ) from error


def _read_torch(path: Path, trust: bool) -> Any:
    import torch

    where = f"checkpoint {path.name}"
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        raise _refusal(error, where, "Save model.state_dict() instead.") from error
    except (RuntimeError, EOFError, ValueError, AttributeError, ImportError) as error:
        raise StageError(
            f"cannot be read: {first_line(error)}", where=where, hint="Is it complete? Save or copy it again."
        ) from error


def _refusal(error: pickle.UnpicklingError, where: str, instead: str) -> StageError:
    """Name what a pickle wanted to run."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.search(r"(?:import|Unsupported class) ([\w.]+)", str(error))
    if found is None:
        return StageError(f"cannot be read: {first_line(error)}", where=where)
    return StageError(
        f"wants to run '{found[1]}' while it loads, which plain weights never need; refused",
        where=where,
        hint=f"{instead} If you trust the file's author completely: model: {{trust: true}}.",
    )


def _find_state(document: Any, key: str | None, path: Path) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(document, torch.nn.Module):
        return dict(document.state_dict())
    where = f"checkpoint {path.name}"
    found = dict(_states(document, ""))
    if key is not None:
        if key not in found:
            raise StageError(
                f"holds no weights under '{key}' (found: {_some(list(found))})", where=f"{where}, model.key"
            )
        return found[key]
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        raise StageError(f"holds no mapping of names to tensors; its top is a {type(document).__name__}", where=where)
    raise StageError(
        f"holds {len(found)} sets of weights: {_some(list(found))}", where=where, hint="Say which:  model: {key: NAME}"
    )


def _states(document: Any, prefix: str) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Walk nested mappings and yield those that hold named tensors; an optimizer's numbered state is not one."""
    import torch

    if not isinstance(document, Mapping):
        return
    tensors = {k: v for k, v in document.items() if isinstance(k, str) and isinstance(v, torch.Tensor)}
    if tensors and len(tensors) * 2 >= len(document):
        yield prefix, tensors
        return
    for name, value in document.items():
        if isinstance(name, str):
            yield from _states(value, f"{prefix}.{name}" if prefix else name)


def _load_state(module: torch.nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Load strictly, and list what is missing, unexpected and of another shape."""
    own = module.state_dict()
    optional = {k for k in own if k.endswith("num_batches_tracked")}
    missing = [k for k in own if k not in state and k not in optional]
    unexpected = [k for k in state if k not in own]
    unfit = [
        f"{k} {list(v.shape)}, model has {list(own[k].shape)}"
        for k, v in state.items()
        if k in own and hasattr(own[k], "shape") and own[k].shape != v.shape
    ]
    if not (missing or unexpected or unfit):
        module.load_state_dict(dict(state), strict=False)
        return
    lines = [
        f"{title} ({len(keys)}): {_some(keys)}"
        for title, keys in (("missing", missing), ("unexpected", unexpected), ("other shape", unfit))
        if keys
    ]
    prefix = _common_prefix(unexpected, missing)
    lines.append(
        f"Every key begins with '{prefix}':  model: {{strip_prefix: '{prefix}'}}"
        if prefix
        else "Is it the checkpoint of this architecture? See model.factory and model.arguments."
    )
    raise StageError(
        f"does not fit {type(module).__name__} ({len(own)} keys)",
        where=f"checkpoint {path.name}",
        hint="\n".join(lines),
    )


def _common_prefix(unexpected: list[str], missing: list[str]) -> str | None:
    """Return what the checkpoint's keys have in front of the model's, if it is one and the same everywhere."""
    if not missing or not unexpected:
        return None
    tails = [k for k in unexpected if k.endswith(missing[0])]
    prefix = tails[0].removesuffix(missing[0]) if tails else ""
    return prefix if prefix and all(f"{prefix}{k}" in unexpected for k in missing) else None


def _some(keys: list[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that says something, without torch's numbered advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
