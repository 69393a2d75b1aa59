"""A model folder (`module.json`, the checkpoint, the factory's code) and the nn.Module it describes."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import StageError
from optimizer.exported import load_exported, unpickling_refused
from optimizer.imports import first_line, importable, load_function, user_code
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
    folder: Path  # of the factory's code

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
        module = load_exported(checkpoint, inputs, trust=about["trust"])
    else:
        module = _call_factory(folder, about["factory"], about["arguments"])
        state = read_state_dict(checkpoint, key=about["key"], strip_prefix=about["strip_prefix"], trust=about["trust"])
        _load_state(module, state, checkpoint)
        module = module.eval()
    return LoadedModule(module.to(device), inputs, keywords, tuple(about["outputs"]), folder)


def _call_factory(folder: Path, factory: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    import torch

    file, _, name = factory.partition(":")
    function = load_function(folder / file, name)
    with importable(folder), user_code(f"factory {factory}", folder):
        module = function(**arguments)
    if not isinstance(module, torch.nn.Module):
        raise StageError(f"returned a {type(module).__name__}, not an nn.Module", where=f"factory {factory}")
    return module


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
        raise unpickling_refused(error, where, "Save model.state_dict() instead.") from error
    except (RuntimeError, EOFError, ValueError, AttributeError, ImportError) as error:
        raise StageError(
            f"cannot be read: {first_line(error)}", where=where, hint="Is it complete? Save or copy it again."
        ) from error


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
