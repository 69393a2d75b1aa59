"""The PyTorch module that an ONNX node comes from, carried in the node's metadata from the export on."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx

# Written by the stage export on every node; the others are the exporter's own.
MODULE = "optimizer.module"
# Written by the stage export on the graph, as a JSON object: every module of the model with its class, and every
# further path of one that is registered under several with the first.
MODULES = "optimizer.modules"
_SAME_AS = "same_as"
_SCOPES = "pkg.torch.onnx.name_scopes"
_REWRITTEN = "pkg.onnxscript.rewriter.rule_name"
# The second call of a module is another scope to the exporter: 'encoder@1'.
_CALL = re.compile(r"@\d+(?=\.|$)")


def module_of(node: onnx.NodeProto) -> str:
    """Return the path of the node's module, as named_modules() has it ('layer1.0.conv1').

    Empty where the model itself computes it, and where the graph was not exported by PyTorch's dynamo exporter.
    """
    found = {entry.key: entry.value for entry in node.metadata_props if entry.key in (MODULE, _SCOPES)}
    return found[MODULE] if MODULE in found else scope(found.get(_SCOPES, ""))


def folded_into(node: onnx.NodeProto) -> str:
    """Return the module that the exporter folded into that of a node ('layer1.0.bn1' into 'layer1.0.conv1'); or ''.

    A node that was fused carries the exporter's scope of its last part, and the module that owns its weight.
    """
    found = {entry.key: entry.value for entry in node.metadata_props if entry.key in (MODULE, _SCOPES)}
    last = scope(found.get(_SCOPES, ""))
    return last if MODULE in found and last != found[MODULE] else ""


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of a model: the class of each by the first path it is registered under, and that path by others."""

    classes: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def class_of(self, path: str) -> str | None:
        """Return the class of a module by any of its paths; None where the model has no such module."""
        return self.classes.get(self.aliases.get(path, path))

    def other_paths(self, path: str) -> tuple[str, ...]:
        """Return what else the module of a path is registered as, its first path first."""
        first = self.aliases.get(path, path)
        every = (first, *(alias for alias, own in self.aliases.items() if own == first))
        return tuple(other for other in every if other != path)


def modules_text(modules: Iterable[tuple[str, object]]) -> str:
    """Return what the export writes of a model's modules by path under `MODULES`, without the model itself.

    From named_modules(remove_duplicate=False) a module that is registered twice is known by both of its paths.
    """
    first: dict[int, str] = {}
    found: dict[str, str | dict[str, str]] = {}
    for path, module in modules:
        if path:
            own = first.setdefault(id(module), path)
            found[path] = type(module).__name__ if own == path else {_SAME_AS: own}
    return json.dumps(found, ensure_ascii=False)


def modules_of(model: onnx.ModelProto) -> Modules:
    """Return the modules of the model that the graph was exported from; none where the stage export did not do that."""
    text = next((entry.value for entry in model.metadata_props if entry.key == MODULES), "{}")
    found: dict[str, str | dict[str, str]] = json.loads(text)
    classes = {path: about for path, about in found.items() if isinstance(about, str)}
    return Modules(classes, {path: about[_SAME_AS] for path, about in found.items() if not isinstance(about, str)})


def scope(scopes: str) -> str:
    """Return the innermost module of what the exporter writes: "['', 'layer1', 'layer1.0', 'conv2d']"."""
    try:
        found = ast.literal_eval(scopes) if scopes else []
    except (SyntaxError, ValueError):
        return ""
    # The last name is that of the operation.
    return _CALL.sub("", str(found[-2])) if isinstance(found, list) and len(found) > 1 else ""


def origin(metadata: dict[str, str], weights: Collection[str], modules: Collection[str]) -> str | None:
    """Return the module to write on a node as it leaves the exporter; None where its metadata names none.

    A node that the exporter fused (a BatchNormalization into its Conv) carries the scope of the last part; the module
    that owns its weight is the one that computes. `weights` are the constants it reads, `modules` the model's.
    """
    if _REWRITTEN in metadata:
        owner = next((path for name in weights if (path := name.rpartition(".")[0]) in modules), None)
        if owner:
            return owner
    return scope(metadata[_SCOPES]) if _SCOPES in metadata else None


def paths(module: str) -> Iterator[str]:
    """Yield a module's path and those of the modules around it: 'layer1.0.conv1', 'layer1.0', 'layer1'."""
    while module:
        yield module
        module = module.rpartition(".")[0]
