"""What forward() raises comes out as the model's error, with its line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from optimizer.checkpoint import load_module
from optimizer.errors import StageError
from optimizer.runners.torch import TorchSession
from optimizer.stages.export import _try_forward

FEED = {"x": np.ones((2, 3), np.float32)}


def folder(place: Path, *body: str) -> Path:
    lines = "".join(f"        {line}\n" for line in body)
    place.mkdir(exist_ok=True)
    (place / "model.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.a = torch.nn.Linear(3, 2)\n    def forward(self, x):\n{lines}"
    )
    torch.save({"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}, place / "c.pt")
    about = {"kind": "state_dict", "checkpoint": "c.pt", "factory": "model.py:Net", "arguments": {}, "key": None}
    about |= {"strip_prefix": None, "trust": False, "outputs": ["y"]}
    about["inputs"] = [{"name": "x", "dtype": "float32", "shape": ["batch", 3], "keyword": False}]
    (place / "module.json").write_text(json.dumps(about))
    return place


@pytest.mark.parametrize(
    ("line", "kind"),
    [("return self.b(x)", "AttributeError"), ("return {}[3]", "KeyError: 3"), ("return y", "NameError")],
)
def test_an_error_in_forward_is_told_with_its_line(tmp_path: Path, line: str, kind: str) -> None:
    place = folder(tmp_path, line)
    session = TorchSession(place)
    for call in (session.infer, session.bind):
        with pytest.raises(StageError, match=rf"model Net: forward\(\) failed on x float32\[2, 3\]: {kind}.*line 7"):
            call(FEED)
    with pytest.raises(StageError, match=rf"forward\(\) failed on real samples.*{kind}.*line 7"):
        _try_forward(load_module(place), FEED)


def test_what_forward_refuses_is_told_with_its_line(tmp_path: Path) -> None:
    place = folder(tmp_path, "return self.a(x[:, :2])")
    with pytest.raises(StageError, match=r"refused real samples .*mat1 and mat2.*\(model\.py, line 7: return self\.a"):
        _try_forward(load_module(place), FEED)
    with pytest.raises(StageError, match=r"RuntimeError: mat1 and mat2.*\(model\.py, line 7"):
        TorchSession(place).infer(FEED)


def test_forward_may_import_late(tmp_path: Path) -> None:
    for side, gain in (("one", 2), ("two", 3)):
        place = folder(tmp_path / side, "from gains import GAIN", "return self.a(x) * GAIN")
        (place / "gains.py").write_text(f"GAIN = {gain}")
    one, two = (TorchSession(tmp_path / side) for side in ("one", "two"))
    for _ in range(2):
        assert one.infer(FEED)["y"][0, 0] == 6
        assert two.infer(FEED)["y"][0, 0] == 9
    one.bind(FEED)()


def test_inputs_that_do_not_fit_on_the_device_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch raises there is a RuntimeError, and nothing around a session would know it as the model's."""
    session = TorchSession(folder(tmp_path, "return self.a(x)"))

    def full(*given: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(session, "_tensors", full)
    for call in (session.infer, session.bind):
        with pytest.raises(StageError, match="OutOfMemoryError: CUDA out of memory"):
            call(FEED)
