"""Refuse to deliver less of a precision than was asked for, and write down what was delivered."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optimizer.errors import StageError
from optimizer.graph.layer_receipt import document, layer_rows
from optimizer.graph.layers import FILE
from optimizer.graph.quantize import Quantized, summarize
from optimizer.graph.receipt import Receipt, graph_receipt


@dataclass(frozen=True, slots=True)
class Wish:
    """What a recipe asks of a stage: a share of the multiply-accumulates in a precision, less what it keeps."""

    stage: str
    precision: str
    at_least: float
    keep: Sequence[str] = ()


def write_delivered(path: Path, quantized: Quantized, wish: Wish) -> Receipt:
    """Write the receipt of a strongly typed graph beside it, layer by layer, and return it.

    Raises: StageError when less than was wished for of the multiply-accumulates, or none, have the precision.
    """
    receipt = graph_receipt(path)
    share = receipt.shares.get(wish.precision, 0.0)
    if share == 0.0 or share < wish.at_least:
        reasons = [*summarize(quantized.left), *(receipt.notes if receipt.uncounted else ())]
        raise StageError(
            f"{wish.precision} reaches {share:.1%} of the multiply-accumulates, at_least asks for {wish.at_least:.1%}; "
            f"in float stay {'; '.join(reasons[:6])}",
            where=wish.stage,
            hint=advice(share, wish),
        )
    write_rows(path, receipt, wish.precision, quantized.left, quantized.kept)
    return receipt


def write_rows(
    path: Path, receipt: Receipt, precision: str, left: Mapping[str, str], kept: Collection[str] = ()
) -> None:
    """Write the receipt of a graph beside it; `left` and `kept` are those of `layer_rows`."""
    rows = layer_rows(path, receipt, precision, left, kept)
    text = json.dumps(document(rows, receipt, "tensorrt"), indent=1, ensure_ascii=False)
    (path.parent / FILE).write_text(f"{text}\n", encoding="utf-8")


def advice(share: float, wish: Wish) -> str:
    """Return what to do about a share that is less than was wished for."""
    if share < 0.01 and not wish.keep:
        return f"Remove the {wish.precision} variant from the recipe: this model gains nothing from it."
    accept = (
        f"accept it with at_least: {int(share * 100) / 100:.2f}"
        if share >= 0.01
        else f"drop the {wish.precision} variant"
    )
    return f"Shorten keep:, or {accept}" if wish.keep else accept.capitalize()
