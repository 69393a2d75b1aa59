"""`optimize inspect`: what is in a file, or what differs between two."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from optimizer.cli.diagnosis import check_diagnosis, diagnosis_lines, is_diagnosis
from optimizer.cli.engines import PARTS, built_lines, engine_lines, shares, summary_lines
from optimizer.cli.layers import layer_lines
from optimizer.cli.ranges import chosen_ranges, largest_change_first, screen, with_health
from optimizer.errors import MissingToolError, UsageError

_SHOWN = 12  # names listed of a part that differs; --json has all


@click.command("inspect")
@click.argument("files", nargs=-1, required=True, metavar="FILE [FILE]", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
def command(files: tuple[Path, ...], as_json: bool) -> None:
    """Show what is in an ONNX file, an engine, a calibration table or its diagnosis; with two files, what differs."""
    if len(files) > 2:
        raise UsageError(
            f"{len(files)} files were given", where="inspect", hint="Allowed: one file, or two to compare."
        )
    try:
        from optimizer.graph.difference import difference
        from optimizer.graph.inspect import inspect
    except ImportError as error:
        raise MissingToolError(f"inspect needs onnx ({error})", hint="pip install onnx") from error
    documents = [_told_apart(inspect(file)) for file in files]
    if len(documents) == 1:
        click.echo(json.dumps(_whole(documents[0]), indent=1) if as_json else "\n".join(_summary(documents[0])))
        return
    if not as_json and all(document["kind"] == "calibration" for document in documents):
        documents = [chosen_ranges(document) for document in documents]
        click.echo("\n".join(_differences(largest_change_first(difference(*documents)))))
        return
    _check_kinds(documents)
    found = difference(*documents)
    if not as_json and all(document["kind"] == "engine" for document in documents):
        click.echo("\n".join(_engines(found, [str(file) for file in files])))
        return
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(_differences(found)))


def _told_apart(document: dict[str, Any]) -> dict[str, Any]:
    return {**document, "kind": "diagnosis"} if is_diagnosis(document) else document


def _check_kinds(documents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a diagnosis beside anything else, and one that is not whole."""
    of_one = [document["kind"] == "diagnosis" for document in documents]
    if any(of_one) and not all(of_one):
        one, other = (documents[i]["path"] for i in (of_one.index(True), of_one.index(False)))
        raise UsageError(f"{one} is a diagnosis and {other} is none", hint="Give two files of one kind.")
    for document in documents:
        if document["kind"] == "diagnosis":
            check_diagnosis(document)


def _whole(document: dict[str, Any]) -> dict[str, Any]:
    return with_health(document) if document["kind"] == "calibration" else document


def _summary(document: Mapping[str, Any]) -> Iterator[str]:
    size = document["bytes"]
    yield f"{document['path']}   {document['kind']}" + (
        f"   {size:,} bytes" if size is not None else "   no plan beside it"
    )
    for side in ("inputs", "outputs"):
        for spec in document.get(side, ()):
            yield f"{side[:-1]:<8} {spec['name']}  {spec['dtype']}[{', '.join(map(str, spec['shape']))}]"
    shows = {"onnx": _onnx, "engine": _engine, "calibration": screen, "diagnosis": diagnosis_lines}
    yield from shows[document["kind"]](document)


def _onnx(document: Mapping[str, Any]) -> Iterator[str]:
    yield f"opset    {', '.join(f'{domain} {version}' for domain, version in document['opset'].items())}"
    yield f"parameters  {document['parameters']:,} in {len(document['initializers'])} initializers"
    yield f"nodes    {sum(document['operators'].values())}"
    for operator, count in sorted(document["operators"].items(), key=lambda item: -item[1]):
        yield f"  {count:>5}  {operator}"
    yield f"precision of nodes   {shares(document['precision'])}"
    if document["layers"]:
        yield f"layers that multiply   {len(document['layers'])}, by {document['layers_from']}"
        yield from layer_lines(document["layers"])


def _engine(document: Mapping[str, Any]) -> Iterator[str]:
    yield from built_lines(document)
    yield from summary_lines(document)


def _engines(found: Mapping[str, Any], paths: Sequence[str]) -> Iterator[str]:
    yield from engine_lines(found, paths)
    rest = {part: change for part, change in found.items() if part not in PARTS}
    if rest:
        yield from _differences(rest)


def _entry(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_entry(item)}" for key, item in value.items() if key != "sha256")
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _differences(found: Mapping[str, Any]) -> Iterator[str]:
    if not found:
        yield "nothing differs"
    for part, change in found.items():
        if isinstance(change, list):
            yield f"{part}: {_entry(change[0])} -> {_entry(change[1])}"
            continue
        yield f"{part}:"
        for side, sign in (("only_first", "-"), ("only_second", "+")):
            yield from _listed([f"  {sign} {name}" for name in change.get(side, ())])
        pairs = change.get("changed", {}).items()
        yield from _listed([f"  {name}: {_change(*pair)}" for name, pair in pairs])


def _change(first: Any, second: Any) -> str:
    """Word a change; equal descriptions differ in their values alone."""
    before, after = _entry(first), _entry(second)
    return f"{before} -> {after}" if before != after else f"other values ({before})"


def _listed(lines: list[str]) -> Iterator[str]:
    yield from lines[:_SHOWN]
    if len(lines) > _SHOWN:
        yield f"    ... and {len(lines) - _SHOWN} more (--json has all)"
