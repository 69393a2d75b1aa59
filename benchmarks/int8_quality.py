"""fp16 and int8 of ResNet-20 and ResNet-56 on CIFAR-10, beside PyTorch's half, onnxruntime and modelopt, in one run.

    python benchmarks/int8_quality.py [--data DIR] [--models resnet20,resnet56] [--pictures N] [--modelopt ENV]
                                      [--json FILE]

The same 512 calibration pictures for everybody, judged on all 10,000 test pictures: top-1, share of answers equal to
float32's, and SQNR of the logits in dB (10 log10 of sum ref^2 over sum err^2). TensorRT's dialect is executed as
written, the CPU's as onnxruntime's integer kernels do it. `int8` is the share of multiply-accumulates that the graph
(TensorRT's dialect) or onnxruntime (the CPU's) computes in int8. onnxruntime's Entropy, with the bins that
quantize_static gives it, is MinMax. Ours goes through the stages of a recipe's variant. modelopt has an
environment of its own, created here with pip (--modelopt names one; "none" leaves it out).
float16, on all pictures and on 500 of them, is judged with rounding after every operator: ours, PyTorch's half exported
to ONNX, and onnxruntime's conversion. PyTorch's half, with its normalisations and with them folded away, and its
autocast stand beside, as its own kernels for the CPU compute them.
Goals: TensorRT's dialect 30 dB (ResNet-20) and 31 dB (ResNet-56) at 95 % int8, with residual sums in int8 27.1 and 25.2
dB; the CPU's 1 dB above the best peer; fp16 no worse than PyTorch's half.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from quality import ROOT, Judging, Row, carry_out, float16_rows, float32_rows, int8_rows, opened, parser
from quality_goals import float16_goals, int8_goal, peer_goals

from optimizer.recipe.loader import load_recipe
from optimizer.recipe.model import Recipe

RECIPE = ROOT / "recipes" / "cifar10-resnet20" / "recipe.yaml"
MODELS = {"resnet20": ("resnet20-12fca82f.th", 3), "resnet56": ("resnet56-4bfd9763.th", 9)}
BATCH = 100
# TensorRT's dialect; the second with residual sums in int8
LEAST_DB = {"resnet20": (30.0, 27.1), "resnet56": (31.0, 25.2)}

# name -> options of the int8 variant
OURS: dict[str, dict[str, Any]] = {
    "percentile": {},
    "float_share": {"float_share": 0.05},
    "float_share, learned": {"float_share": 0.05, "rounding": "learned"},
    "residuals int8": {"residuals": "int8"},
    "residuals, fs., learned": {"residuals": "int8", "float_share": 0.05, "rounding": "learned"},
}
PEERS = (
    ("onnxruntime", "MinMax"),
    ("onnxruntime", "Entropy"),
    ("onnxruntime", "Percentile"),
    ("modelopt", "max"),
    ("modelopt", "entropy"),
)
# onnxruntime's histograms take no smaller last batch: it divides 512.
TOGETHER = 64


def resnet(model: str, data: str) -> Recipe:
    """Return the recipe of a ResNet: that of ResNet-20 with another checkpoint and depth."""
    checkpoint, blocks = MODELS[model]
    recipe = load_recipe(RECIPE, {"data": data})
    path = str(pathlib.Path(data) / "cifar10" / "checkpoints" / checkpoint)
    source = recipe.model.model_copy(update={"checkpoint": path, "arguments": {"blocks": blocks}})
    return recipe.model_copy(update={"model": source})


def rows_of(model: str, arguments: argparse.Namespace, python: str, folder: pathlib.Path) -> Iterator[Row]:
    """Yield a row per tool, form and dialect."""
    judging = Judging("top1", BATCH, (arguments.pictures, min(500, arguments.pictures or 500)))
    subject = opened(model, resnet(model, arguments.data), (folder, python), judging, TOGETHER)
    yield from float32_rows(subject)
    yield from float16_rows(subject)
    yield from int8_rows(subject, OURS, PEERS)


def goals_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what was to be reached, and whether it was."""
    found: dict[str, Any] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        least, with_sums = LEAST_DB[model]
        found |= int8_goal(rows, model, least, 0.95) | int8_goal(rows, model, with_sums, 0.95, residuals=True)
        found |= peer_goals(rows, model, {"tensorrt": 0.0, "cpu": 1.0}) | float16_goals(rows, model)
    return found


def main() -> None:
    command = parser(__doc__, "cifar10/", tuple(MODELS))
    command.add_argument("--pictures", type=int, default=0, help="test pictures that judge (default: all 10,000)")
    carry_out(command, rows_of, goals_of)


if __name__ == "__main__":
    main()
