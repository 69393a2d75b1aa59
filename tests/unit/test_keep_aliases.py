"""A PyTorch module that is registered under two paths is kept by either, whichever of them forward() calls it by."""

from __future__ import annotations

from typing import Any

import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from optimizer.errors import StageError
from optimizer.graph.keep import match
from optimizer.graph.modules import MODULE, MODULES, Modules, module_of, modules_of, modules_text
from optimizer.stages.export import _carry_modules


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    """A block that is called by its second path, a head that is called by both, one nobody calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Block()
        self.second = self.first
        self.head = nn.Linear(3, 3)
        self.tied = self.head
        self.idle = nn.Dropout()
        self.unheard = self.idle

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.tied(self.head(self.second(image).mean((2, 3))))


@pytest.fixture(scope="module")
def program() -> Any:
    net = Net().eval()
    return net, torch.onnx.export(net, (torch.randn(2, 3, 4, 4),), dynamo=True, verbose=False)


def exported(program: Any, *, aliases: bool = True) -> onnx.ModelProto:
    net, made = program
    for node in made.model.graph:
        node.metadata_props.pop(MODULE, None)
    _carry_modules(made.model, dict(net.named_modules(remove_duplicate=not aliases)))
    model: onnx.ModelProto = made.model_proto
    return model


def kept(model: onnx.ModelProto, *keep: str) -> list[str]:
    found = match(keep, model.graph.node, "quantize", modules_of(model))
    return [n.op_type for n in model.graph.node if n.name in found]


@pytest.mark.filterwarnings("ignore")
def test_either_path_keeps_what_is_called_by_the_other(program: Any) -> None:
    model = exported(program)
    assert kept(model, "first") == kept(model, "second") == ["Conv", "Relu"]
    assert kept(model, "first.conv") == kept(model, "second.conv") == ["Conv"]


@pytest.mark.filterwarnings("ignore")
def test_paths_that_are_both_called_name_their_own_calls(program: Any) -> None:
    model = exported(program)
    assert [module_of(n) for n in model.graph.node if n.op_type == "Gemm"] == ["head", "tied"]
    assert [len(kept(model, *keep)) for keep in (["head"], ["tied"], ["head", "tied"])] == [1, 1, 2]


@pytest.mark.filterwarnings("ignore")
def test_what_was_folded_or_left_nothing_is_told_by_either_path(program: Any) -> None:
    model = exported(program)
    for name in ("first.bn", "second.bn"):
        with pytest.raises(StageError, match=rf"'{name}' is no longer in the graph: .* the Conv of 'second.conv'"):
            kept(model, name)
    for name in ("idle", "unheard"):
        with pytest.raises(StageError, match=rf"the module '{name}' \(Dropout\) left no node"):
            kept(model, name)


@pytest.mark.filterwarnings("ignore")
def test_without_the_second_paths_the_first_is_told_as_never_called(program: Any) -> None:
    """The twin: what named_modules() gives by itself."""
    model = exported(program, aliases=False)
    with pytest.raises(StageError, match=r"the module 'first' .* never called"):
        kept(model, "first")
    with pytest.raises(StageError, match="'unheard' is neither"):
        kept(model, "unheard")


def test_graphs_that_were_exported_before_are_read() -> None:
    model = onnx.ModelProto()
    model.metadata_props.add(key=MODULES, value='{"stem": "Conv2d"}')
    assert modules_of(model) == Modules({"stem": "Conv2d"}, {})
    assert modules_of(onnx.ModelProto()) == Modules({}, {})


def test_two_modules_of_one_class_are_two() -> None:
    one, two = nn.Linear(1, 1), nn.Linear(1, 1)
    model = onnx.ModelProto()
    model.metadata_props.add(key=MODULES, value=modules_text([("", object()), ("a", one), ("b", two), ("c", one)]))
    found = modules_of(model)
    assert found == Modules({"a": "Linear", "b": "Linear"}, {"c": "a"})
    assert (found.other_paths("a"), found.other_paths("c"), found.other_paths("b")) == (("c",), ("a",), ())
    node = helper.make_node("Gemm", ["x"], ["y"], name="gemm")
    node.metadata_props.add(key=MODULE, value="c")
    assert match(["a"], [node], "quantize", found) == {"gemm": "a"}
    with pytest.raises(StageError, match=r"'b' \(Linear\) left no node"):
        match(["b"], [node], "quantize", found)
