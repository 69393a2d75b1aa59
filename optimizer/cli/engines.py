"""Engines on the screen: one by how it was built and its layers; two by totals, then the layers that differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optimizer.cli.layers import layer_lines, tail

_LAYERS = 20  # that multiply, and differ; --json has all
_OTHERS = 8
PARTS = ("totals", "layers", "others", "only_first", "only_second")


def built_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield how one engine was built: by what, for which GPUs and shapes, with which options."""
    yield f"built by {document['package']} {document['version']}"
    yield f"compute capabilities  {', '.join(document.get('compute_capabilities', ())) or 'the GPU it was built on'}"
    for axis, sizes in document.get("profile", {}).items():
        yield f"profile  {axis}: {_range(sizes)}"
    several = document.get("profiles", ())
    if len(several) > 1:
        yield f"optimization profiles   {len(several)}, by their index"
        for index, entry in enumerate(several):
            yield f"  {index}  {'; '.join(f'{axis}: {_range(sizes)}' for axis, sizes in entry.items())}"
    options = document.get("options")
    if options:
        given = document.get("options_given", {})
        yield f"builder options   {'* set by the recipe' if given else 'the defaults of the library'}"
        for name, value in (given | options).items():  # what the library holds is the last word
            yield f"  {'*' if name in given else ' '} {name}  {_option(name, value)}"
    cache = document.get("timing_cache")
    if cache:
        began = cache.get("began_with_sha256")
        yield f"timing cache   {'locked, ' if cache.get('locked') else ''}began with {(began or 'nothing')[:8]}"
    if document.get("retry"):
        first, second = document["retry"]["workspace"]
        yield f"  ! {document['retry']['reason']}: built again with a workspace of {second:,} bytes, not {first:,}"
    if document.get("trtexec"):
        yield from _trtexec(document)


def _trtexec(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the line of NVIDIA's tool, with the graph where it lies and a plan that overwrites none."""
    from optimizer.graph.trtexec import trtexec

    graph = document.get("graph")
    if graph:
        line = trtexec(document, graph, f"{Path(document['path']).absolute().parent.name}.plan")
        yield f"the like by NVIDIA's own tool   {line}"
        return
    yield f"the like by NVIDIA's own tool   {document['trtexec']}"
    digest = str(document.get("onnx_sha256") or "")[:16]
    which = f": in its run's folder artifacts/graphs/{digest}/" if digest else ""
    yield f"  model.onnx, the graph it was built from, is not beside this engine{which}"


def _range(sizes: Mapping[str, int]) -> str:
    return f"min {sizes['min']}, opt {sizes['opt']}, max {sizes['max']}"


def _option(name: str, value: Any) -> str:
    if name == "workspace":
        return f"{value:,} bytes"
    if name == "profiles":
        return "as listed above"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_option(key, item)}" for key, item in value.items())
    return str(value)


def summary_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is in one engine: precision, and its layers in the order of their execution."""
    yield f"precision of multiply-accumulates   {shares(document.get('precision', {}))}"
    yield from (f"  ! {note}" for note in document.get("precision_notes", ()))
    layers = document.get("layers", ())
    moving = [layer["reformat"]["bytes"] for layer in layers if layer.get("reformat")]
    size = None if None in moving else sum(moving)
    also = f", of which move data only: {_moved(len(moving), size)}" if moving else ""
    yield f"layers   {len(layers)}{also}, by {document['layers_from'].partition(' (')[0]}"
    for layer in layers:
        types = "/".join(sorted({tensor["type"] for tensor in (*layer["inputs"], *layer["outputs"])})) or "-"
        why = f"   (moves data: {layer['reformat']['why']})" if layer.get("reformat") else ""
        yield f"  {layer['kind']:<16} {types:<14} {', '.join(layer['onnx_nodes']) or layer['name']}{why}"
    if document["nodes"]:
        yield f"ONNX nodes that multiply   {len(document['nodes'])}"
        yield from layer_lines(document["nodes"])


def engine_lines(found: Mapping[str, Any], paths: Sequence[str]) -> Iterator[str]:
    """Yield what differs between two engines; A is the first."""
    if not found:
        yield "nothing differs"
        return
    yield from (f"{letter}  {path}" for letter, path in zip("AB", paths, strict=True))
    if "totals" in found:
        yield from _totals(found["totals"])
    layers = found.get("layers", ())
    if layers:
        yield f"layers that differ   {len(layers)}, {sum(row['share'] for row in layers):.1%} of the work"
        yield from _rows(layers, _LAYERS)
    others = found.get("others", ())
    if others:
        yield f"other nodes that differ   {len(others)}"
        yield from _rows(others, _OTHERS)
    for side, letter in (("only_first", "A"), ("only_second", "B")):
        if side in found:
            count = len(found[side])
            yield f"only in {letter}   {count} node{'s' * (count > 1)}: {_operators(found[side])}"


def _totals(totals: Mapping[str, Any]) -> Iterator[str]:
    rows = [
        ("plan", [f"{size:,} bytes" if size is not None else "no plan" for size in totals["bytes"]]),
        ("precision of MACs", [shares(found) for found in totals["precision"]]),
        ("kernels", [str(count) for count in totals["kernels"]]),
        ("that only move data", list(map(_moved, totals["reformats"], totals["reformat_bytes"]))),
    ]
    if None not in totals["time_ms"]:
        rows.append(("kernel time", [f"{time:.3f} ms" for time in totals["time_ms"]]))
    wide = max(len(cells[0]) for _, cells in rows)
    yield f"{'':<19}  {'A':<{wide}}  B"
    for name, (first, second) in rows:
        yield f"{name:<19}  {first:<{wide}}  {second}"


def _rows(rows: Sequence[Mapping[str, Any]], most: int) -> Iterator[str]:
    """Yield a line for each layer, or for all layers of one operator that differ alike."""
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["operator"] or "-", "; ".join(_words(row))), []).append(row)
    groups = sorted(alike.items(), key=lambda item: -sum(row["macs"] for row in item[1]))
    shown = [(_names([row["name"] for row in group], 2), *key, group) for key, group in groups[:most]]
    name, operator = (max(len(line[part]) for line in shown) for part in (0, 1))
    for names, kind, words, group in shown:
        share = f"  {sum(row['share'] for row in group):>6.1%}" if rows[0]["macs"] else ""
        yield f"  {names:<{name}}  {kind:<{operator}}{share}  {words}"
    if len(groups) > most:
        yield f"  ... and {sum(len(group) for _, group in groups[most:])} more (--json has all)"


def _words(row: Mapping[str, Any]) -> Iterator[str]:
    first, second = row["precision"]
    yield first if first == second else f"{first} -> {second}"
    kernels = row["kernels"]
    if len(kernels[0]) != len(kernels[1]):
        yield f"{len(kernels[0])} -> {len(kernels[1])} kernels"
    elif kernels[0] != kernels[1]:
        yield f"{'+'.join(kernels[0])} -> {'+'.join(kernels[1])}"
    for side, letter in (("fused_only_first", "A"), ("fused_only_second", "B")):
        if row[side]:
            yield f"fused with {_names(row[side])} in {letter} only"
    if "time_ms" in row:
        yield f"{row['time_ms'][0]:.3f} -> {row['time_ms'][1]:.3f} ms"


def _names(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(map(tail, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def _operators(nodes: Sequence[Mapping[str, str]]) -> str:
    counts = Counter(node["operator"] for node in nodes)
    if "" in counts:
        return _names([node["name"] for node in nodes])
    return ", ".join(f"{count} {operator}" for operator, count in counts.most_common())


def _moved(count: int, size: int | None) -> str:
    return str(count) + (f" ({size:,} bytes)" if size else "")


def shares(found: Mapping[str, float]) -> str:
    """Word the share of each precision."""
    return ", ".join(f"{name} {share:.1%}" for name, share in found.items()) or "unknown"
