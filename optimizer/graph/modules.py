"""The PyTorch module that an ONNX node comes from, carried in the node's metadata from the export on."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

import onnx

# Written by the stage export on every node; the others are the exporter's own.
MODULE = "optimizer.module"
# Written by the stage export on the graph: every module of the model with its class, as a JSON object.
MODULES = "optimizer.modules"
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


def modules_text(modules: Iterable[tuple[str, object]]) -> str:
    """Return what the export writes of a model's named_modules() under `MODULES`: class by path, without itself."""
    return json.dumps({path: type(module).__name__ for path, module in modules if path}, ensure_ascii=False)


def modules_of(model: onnx.ModelProto) -> Mapping[str, str]:
    """Return the class of every module of the model that the graph was exported from, by its path.

    Empty where the graph was not exported by the stage export.
    """
    text = next((entry.value for entry in model.metadata_props if entry.key == MODULES), "{}")
    found: dict[str, str] = json.loads(text)
    return found


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
