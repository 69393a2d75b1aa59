"""Quality of fp16 and int8 on a U-Net (membranes) and a transformer (intents), trained here, beside the peers'.

    python benchmarks/trained_quality.py [--data DIR] [--models membrane-unet,clinc150-intents] [--modelopt ENV]
                                         [--json FILE]

The models of recipes/membrane-unet and recipes/clinc150-intents are trained first where they are not (some minutes).
128 training samples calibrate, and the test split judges: `right` or `top1`, the share of test pixels or sentences that
are right; `same`, of answers equal to float32's; SQNR of the logits in dB (10 log10 of sum ref^2 over sum err^2).
`int8` is the share of multiply-accumulates that the graph (TensorRT's dialect) or onnxruntime (the CPU's) computes in
int8. float16 is judged with rounding after every operator, but for PyTorch's own kernels. The sentences are of mixed
lengths; modelopt takes one shape, so its are padded with the mask that says so.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from quality import ROOT, Judging, Row, carry_out, float16_rows, float32_rows, int8_rows, opened, parser
from quality_goals import float16_goals, peer_goals

from optimizer.recipe.loader import load_recipe

BATCH = 16

# model -> name -> options of the int8 variant
OURS: dict[str, dict[str, dict[str, Any]]] = {
    "membrane-unet": {
        "percentile": {},
        "float_share": {"float_share": 0.05},
        "float_share, learned": {"float_share": 0.05, "rounding": "learned"},
    },
    "clinc150-intents": {
        "minmax": {"method": "minmax"},
        "smooth_quant": {"method": "minmax", "smooth_quant": "auto"},
        "attention": {"method": "minmax", "smooth_quant": "auto", "attention": True},
    },
}
SCORES = {"membrane-unet": "right", "clinc150-intents": "top1"}
PEERS = (("onnxruntime", "MinMax"), ("onnxruntime", "Percentile"), ("modelopt", "max"), ("modelopt", "entropy"))


def trained(model: str, data: str) -> None:
    """Train a recipe's model where that was not done."""
    folder = ROOT / "recipes" / model
    if not (folder / "checkpoint.safetensors").is_file():
        subprocess.run([sys.executable, str(folder / "train.py"), data], check=True)


def rows_of(model: str, arguments: argparse.Namespace, python: str, folder: pathlib.Path) -> Iterator[Row]:
    """Yield a row per tool, form and dialect."""
    trained(model, arguments.data)
    recipe = load_recipe(ROOT / "recipes" / model / "recipe.yaml", {"data": arguments.data})
    subject = opened(model, recipe, (folder, python), Judging(SCORES[model], BATCH), together=1)
    yield from float32_rows(subject)
    yield from float16_rows(subject)
    yield from int8_rows(subject, OURS[model], PEERS)


def goals_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what was to be reached, and whether it was."""
    found: dict[str, Any] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        found |= peer_goals(rows, model, {"tensorrt": 0.0, "cpu": 0.0}) | float16_goals(rows, model)
    return found


if __name__ == "__main__":
    carry_out(parser(__doc__, "membrane/ and clinc150/", tuple(OURS)), rows_of, goals_of)
