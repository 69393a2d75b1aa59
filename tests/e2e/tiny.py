"""A tiny recipe on real digits, made in a moment: fixed random filters, a linear layer solved by least squares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

MODEL = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width * 16, 10)

    def features(self, image):
        return self.pool(torch.relu(self.conv(image))).flatten(1)

    def forward(self, image):
        return self.head(self.features(image))
"""

DATA = """
import os
import numpy as np
from sklearn.datasets import load_digits

def digits(split):
    marker = os.environ.get("TINY_LOADED")
    if marker:
        open(marker, "a").write(split + chr(10))
    pictures, labels = load_digits(return_X_y=True)
    images = (pictures.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    part = slice(0, 900) if split == "train" else slice(900, 1797)
    return images[part], labels[part]
"""

RECIPE = """
name: tiny
model:
  factory: model.py:Tiny
  checkpoint: checkpoint.safetensors
  outputs: [logits]
inputs:
  image: {dtype: float32, shape: [batch, 1, 8, 8]}
profile:
  batch: {min: 1, opt: 4, max: 8}
data:
  source: data.py:digits
  calibration: {split: train, samples: 64}
  evaluation: {split: test}
metrics: [top1]
variants: {fp32: {}, fp16: {}, int8: {}}
targets:
  onnxruntime: {}
  tensorrt_rtx: {compute_capabilities: ["8.6"]}
measure: {batches: [1, 4], seconds: 0.2}
"""


def write_tiny(folder: Path, model_text: str = MODEL) -> Path:
    """Write the recipe and everything it names; return the path of recipe.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("model.py", model_text), ("data.py", DATA), ("recipe.yaml", RECIPE)):
        (folder / name).write_text(text)
    space: dict[str, type] = {}
    exec(model_text, space)
    torch.manual_seed(0)
    model = space["Tiny"]()
    pictures, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pictures[:900].reshape(-1, 1, 8, 8) / 16).astype(np.float32))
    with torch.inference_mode():
        features = model.features(images).double().numpy()
    design = np.hstack([features, np.ones((len(features), 1))])
    targets = np.eye(10)[labels[:900]]
    solved = np.linalg.solve(design.T @ design + np.eye(design.shape[1]), design.T @ targets)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(solved[:-1].T))
        model.head.bias.copy_(torch.from_numpy(solved[-1]))
    save_file(model.state_dict(), folder / "checkpoint.safetensors")
    return folder / "recipe.yaml"


def edit(recipe: Path, before: str, after: str) -> Path:
    """Change the recipe's text; `before` must be there."""
    text = recipe.read_text()
    assert before in text
    recipe.write_text(text.replace(before, after))
    return recipe
