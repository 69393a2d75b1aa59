"""Energy and device memory as NVML counts them on a real GPU. Skipped, with the reason, where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from optimizer.measure.energy import energy_mj_per_item
from optimizer.measure.memory import measure_memory
from optimizer.runner import Runner
from optimizer.runners.torch import TorchRunner
from optimizer.types import Artifact

pytestmark = pytest.mark.gpu
SIZE = 4096
MIB = 1 << 20
MODEL = f"""
import torch

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros({SIZE}, {SIZE}))

    def forward(self, x):
        return x @ self.weight
"""


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """PyTorch on the GPU with 64 MiB of weights."""
    sentence = TorchRunner.missing("cuda:0")
    if sentence:
        pytest.skip(sentence)
    from safetensors.numpy import save_file

    save_file({"weight": np.ones((SIZE, SIZE), np.float32)}, tmp_path / "checkpoint.safetensors")
    (tmp_path / "model.py").write_text(MODEL)
    document = {
        "kind": "state_dict",
        "checkpoint": "checkpoint.safetensors",
        "factory": "model.py:Linear",
        "arguments": {},
        "key": None,
        "strip_prefix": None,
        "trust": False,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", SIZE], "keyword": False}],
        "outputs": ["y"],
    }
    (tmp_path / "module.json").write_text(json.dumps(document))
    return TorchRunner(Artifact("checkpoint", tmp_path, "digest"), device="cuda:0")


def feed(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.ones((rows, SIZE), np.float32)}


def test_more_items_take_more_energy_and_calls_more_power_than_none(runner: Runner) -> None:
    with runner:
        small = energy_mj_per_item(runner.bind(feed(1)), 1, 2.0, device="cuda:0")
        large = energy_mj_per_item(runner.bind(feed(4096)), 4096, 2.0, device="cuda:0")
    assert small.reason is None, small.reason
    assert large.mj_per_item is not None
    assert small.mj_per_item is not None
    assert 0 < large.mj_per_item < small.mj_per_item  # a full GPU spends less on each item
    assert large.mean_w is not None
    assert large.idle_w is not None
    assert 1.0 < large.idle_w < large.mean_w < 1500.0  # watts of one board


def test_device_memory_holds_the_weights(runner: Runner, tmp_path: Path) -> None:
    found = measure_memory(runner, feed(1), folder=tmp_path / "logs")
    assert found.device_bytes is not None, found.device_source
    assert found.device_bytes > 4 * SIZE * SIZE * 0.9
    assert found.own_bytes >= 0
