from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optimizer.checkpoint import load_module, read_state_dict
from optimizer.errors import StageError

MODEL = """
import torch
class Net(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a = torch.nn.Linear(3, width)
        self.b = torch.nn.Linear(width, 2)
    def forward(self, x, *, scale=None):
        y = self.b(torch.relu(self.a(x)))
        return y if scale is None else (y, [y * scale])
def number(): return 3
"""


def state(width: int = 4) -> dict[str, torch.Tensor]:
    return {
        "a.weight": torch.ones(width, 3),
        "a.bias": torch.zeros(width),
        "b.weight": torch.ones(2, width),
        "b.bias": torch.zeros(2),
    }


def folder(path: Path, checkpoint: str, **changes: Any) -> Path:
    about = {
        "kind": "state_dict",
        "checkpoint": checkpoint,
        "factory": "model.py:Net",
        "arguments": {},
        "key": None,
        "strip_prefix": None,
        "trust": False,
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3], "keyword": False}],
        "outputs": ["y"],
    }
    (path / "module.json").write_text(json.dumps(about | changes))
    (path / "model.py").write_text(MODEL)
    return path


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"epoch": 3, "net": {"state_dict": s}}])
@pytest.mark.parametrize("name", ["c.pt", "c.pth", "c.th"])
def test_a_state_dict_loads_at_any_nesting(tmp_path: Path, wrap: Any, name: str) -> None:
    torch.save(wrap(state()), tmp_path / name)
    loaded = load_module(folder(tmp_path, name))
    assert not loaded.module.training
    assert loaded({"x": torch.ones(5, 3)})["y"].tolist() == [[12.0, 12.0]] * 5


def test_safetensors_load(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "c.safetensors")
    assert load_module(folder(tmp_path, "c.safetensors"))({"x": torch.ones(1, 3)})["y"].shape == (1, 2)


def test_the_old_format_of_torch_loads(tmp_path: Path) -> None:
    torch.save({"state_dict": state()}, tmp_path / "c.th", _use_new_zipfile_serialization=False)
    assert set(read_state_dict(tmp_path / "c.th")) == set(state())


def test_a_prefix_is_stripped_and_a_wrong_one_refused(tmp_path: Path) -> None:
    torch.save({f"module.{k}": v for k, v in state().items()}, tmp_path / "c.pt")
    assert set(read_state_dict(tmp_path / "c.pt", strip_prefix="module.")) == set(state())
    with pytest.raises(StageError, match=r"4 of 4 keys do not begin with 'model\.'"):
        read_state_dict(tmp_path / "c.pt", strip_prefix="model.")


def test_a_forgotten_prefix_is_proposed(tmp_path: Path) -> None:
    torch.save({f"module.{k}": v for k, v in state().items()}, tmp_path / "c.pt")
    with pytest.raises(StageError, match=r"strip_prefix: 'module\.'"):
        load_module(folder(tmp_path, "c.pt"))


def test_several_sets_of_weights_need_a_key(tmp_path: Path) -> None:
    torch.save({"model": state(), "ema": {"model": state()}}, tmp_path / "c.pt")
    with pytest.raises(StageError, match=r"holds 2 sets of weights: model, ema\.model"):
        read_state_dict(tmp_path / "c.pt")
    assert set(read_state_dict(tmp_path / "c.pt", key="ema.model")) == set(state())
    with pytest.raises(StageError, match="holds no weights under 'emma'"):
        read_state_dict(tmp_path / "c.pt", key="emma")


def test_another_architecture_is_listed_key_by_key(tmp_path: Path) -> None:
    wrong = state(width=7)
    wrong["c.weight"] = wrong.pop("b.bias")
    torch.save(wrong, tmp_path / "c.pt")
    with pytest.raises(StageError) as caught:
        load_module(folder(tmp_path, "c.pt"))
    text = str(caught.value)
    assert "missing (1): b.bias" in text
    assert "unexpected (1): c.weight" in text
    assert "other shape (3): a.weight [7, 3], model has [4, 3]" in text
    assert len(text.splitlines()) <= 15


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/should-never-exist-optimizer",)


def test_a_pickle_that_would_run_code_is_refused_and_named(tmp_path: Path) -> None:
    torch.save({"state_dict": state(), "extra": Evil()}, tmp_path / "c.pt")
    with pytest.raises(StageError, match=r"wants to run '(posix|os|nt)\.system'"):
        read_state_dict(tmp_path / "c.pt")
    assert not Path("/tmp/should-never-exist-optimizer").exists()


def test_a_whole_pickled_module_needs_trust(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "c.pt")
    with pytest.raises(StageError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_state_dict(tmp_path / "c.pt")
    assert set(read_state_dict(tmp_path / "c.pt", trust=True)) == {"weight", "bias"}


@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
def test_a_truncated_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    if name.endswith("pt"):
        torch.save(state(), tmp_path / name)
    else:
        save_file(state(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match=f"checkpoint {name}"):
        read_state_dict(tmp_path / name)


def test_arguments_reach_the_factory_and_a_wrong_one_is_named(tmp_path: Path) -> None:
    torch.save(state(7), tmp_path / "c.pt")
    assert load_module(folder(tmp_path, "c.pt", arguments={"width": 7})).module.a.out_features == 7
    with pytest.raises(StageError, match="TypeError"):
        load_module(folder(tmp_path, "c.pt", arguments={"wide": 7}))
    with pytest.raises(StageError, match="returned a int, not an"):
        load_module(folder(tmp_path, "c.pt", factory="model.py:number"))


def test_keyword_inputs_and_nested_outputs_are_named_in_order(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "c.pt")
    inputs = [
        {"name": "x", "dtype": "float32", "shape": ["batch", 3], "keyword": False},
        {"name": "scale", "dtype": "float32", "shape": [1], "keyword": True},
    ]
    loaded = load_module(folder(tmp_path, "c.pt", inputs=inputs, outputs=["y", "scaled"]))
    found = loaded({"x": torch.ones(1, 3), "scale": torch.tensor([2.0])})
    assert found["scaled"].tolist() == [[24.0, 24.0]]
    wrong = load_module(folder(tmp_path, "c.pt", inputs=inputs, outputs=["y"]))
    with pytest.raises(StageError, match="returned 2 tensors"):
        wrong({"x": torch.ones(1, 3), "scale": torch.tensor([2.0])})


class Twice(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def exported(path: Path, *, dynamic: bool) -> Path:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(Twice(), (torch.ones(2, 3),), dynamic_shapes=shapes)
    torch.export.save(program, path / "c.pt2")
    return folder(path, "c.pt2", kind="exported_program", factory=None)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_loads_with_its_dynamic_axis(tmp_path: Path) -> None:
    loaded = load_module(exported(tmp_path, dynamic=True))
    assert loaded({"x": torch.ones(5, 3)})["y"].shape == (5, 3)


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_with_fixed_shapes_is_refused_for_named_axes(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"fixed to \[2, 3\]; the recipe names the dynamic axis 'batch'"):
        load_module(exported(tmp_path, dynamic=False))


@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_may_not_run_code_either(tmp_path: Path) -> None:
    """torch.export.load itself would fall back to full unpickling, and run it."""
    place = exported(tmp_path, dynamic=True)
    buffer = io.BytesIO()
    torch.save((Evil(),), buffer)
    with zipfile.ZipFile(place / "c.pt2") as good, zipfile.ZipFile(place / "evil.pt2", "w") as evil:
        for name in good.namelist():
            evil.writestr(name, buffer.getvalue() if name.endswith("sample_inputs/model.pt") else good.read(name))
    (place / "evil.pt2").replace(place / "c.pt2")
    with pytest.raises(StageError, match=r"wants to run '(posix|os|nt)\.system'"):
        load_module(place)
    assert not Path("/tmp/should-never-exist-optimizer").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_file_that_is_no_exported_program_is_named(tmp_path: Path) -> None:
    place = exported(tmp_path, dynamic=True)
    (place / "c.pt2").write_bytes(b"nothing of the kind")
    with pytest.raises(StageError, match="cannot be read as an exported program"):
        load_module(place)


@pytest.mark.parametrize("body", ["raise ValueError('no')", "open('/no/such/file')", "return undefined_name"])
def test_what_the_factory_raises_is_told_with_its_line(tmp_path: Path, body: str) -> None:
    torch.save(state(), tmp_path / "c.pt")
    place = folder(tmp_path, "c.pt", factory="model.py:broken")
    (place / "model.py").write_text(f"def broken():\n    {body}\n")
    with pytest.raises(StageError, match=r"Error.*\(model\.py, line 2"):
        load_module(place)


def test_a_script_that_exits_while_it_is_imported_does_not_end_the_build(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "c.pt")
    place = folder(tmp_path, "c.pt")
    (place / "model.py").write_text(f"{MODEL}\nimport sys\nsys.exit(2)\n")
    with pytest.raises(StageError, match=r"importing model\.py: SystemExit: 2 \(model\.py, line 14"):
        load_module(place)
