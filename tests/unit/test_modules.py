"""PyTorch module names, from torch.onnx.export through simplify and quantize."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from quantization_graphs import ranges_of
from torch import nn

from optimizer.errors import StageError
from optimizer.graph import float8
from optimizer.graph.blocks import quantize_blocks
from optimizer.graph.keep import match
from optimizer.graph.modules import MODULE, module_of, modules_of, origin, paths, scope
from optimizer.graph.quantize import quantize
from optimizer.graph.slim import slim
from optimizer.stages.export import _carry_modules

pytestmark = pytest.mark.filterwarnings("ignore")


class Block(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    """BatchNormalization that is folded, blocks in a Sequential, a module called twice, a bias that is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 4)
        self.body = nn.Sequential(Block(4, 4), Block(4, 4))
        self.shared = nn.Conv2d(4, 4, 1)
        self.linear = nn.Linear(4, 5)
        self.dropout = nn.Dropout()
        self.unused = nn.Linear(2, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        x = x + self.body(x)
        x = self.shared(self.shared(x))
        return self.linear(self.dropout(x.mean((2, 3))))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    net = Net().eval()
    program = torch.onnx.export(
        net,
        (torch.randn(2, 3, 8, 8),),
        dynamo=True,
        dynamic_shapes=({0: "batch"},),
        input_names=["image"],
        output_names=["logits"],
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    _carry_modules(program.model, dict(net.named_modules()))
    program.save(str(folder / "exported.onnx"), external_data=False)
    slim(str(folder / "exported.onnx"), str(folder / "simplified.onnx"))
    return folder


def quantize_tensorrt(model: onnx.ModelProto, keep: Sequence[str]) -> object:
    return quantize(model, {}, "tensorrt", keep)


def quantize_float8(model: onnx.ModelProto, keep: Sequence[str]) -> object:
    return float8.quantize_float8(model, {}, keep)


EXPECTED = ["stem.conv", "body.0.conv", "body.1.conv", "shared", "shared", "linear"]


def layers(model: onnx.ModelProto) -> list[str]:
    return [module_of(n) for n in model.graph.node if n.op_type in {"Conv", "Gemm", "MatMul"}]


@pytest.mark.parametrize("name", ["exported.onnx", "simplified.onnx"])
def test_layers_carry_the_module_that_owns_their_weight(exported: Path, name: str) -> None:
    assert layers(onnx.load(exported / name)) == EXPECTED


def test_the_scope_of_a_folded_normalisation_alone_would_name_the_wrong_module(exported: Path) -> None:
    """The twin: the exporter gives a Conv the scope of the BatchNormalization that it fused into it."""
    model = onnx.load(exported / "exported.onnx")
    first = next(n for n in model.graph.node if n.op_type == "Conv")
    metadata = {entry.key: entry.value for entry in first.metadata_props}
    assert scope(metadata["pkg.torch.onnx.name_scopes"]) == "stem.bn"
    assert metadata[MODULE] == "stem.conv"


def test_nodes_keep_their_module_through_quantize(exported: Path, tmp_path: Path) -> None:
    feed = {"image": np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)}
    for dialect in ("tensorrt", "cpu", "openvino"):
        model = onnx.load(exported / "simplified.onnx")
        made = quantize(model, ranges_of(model, feed, tmp_path), dialect, keep=("body",))  # type: ignore[arg-type]
        assert layers(made.model) == EXPECTED
        kept = {n.name for n in made.model.graph.node if module_of(n).startswith("body.") and n.op_type == "Conv"}
        assert {name for name, reason in made.left.items() if reason == "the recipe keeps it"} == kept
        assert len(kept) == 2
        assert kept < made.kept  # the Relu of the blocks as well


def test_a_module_is_kept_with_all_inside_it(exported: Path) -> None:
    nodes = onnx.load(exported / "simplified.onnx").graph.node
    found = match(["body.1"], nodes, "quantize")
    assert {n.op_type for n in nodes if n.name in found} == {"Conv", "Relu"}


def refusal(keep: list[str], model: onnx.ModelProto) -> list[str]:
    with pytest.raises(StageError) as caught:
        match(keep, model.graph.node, "quantize", modules_of(model))
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", ["exported.onnx", "simplified.onnx"])
def test_a_normalisation_that_was_folded_is_told_with_what_holds_it_now(exported: Path, name: str) -> None:
    assert refusal(["body.1.bn"], onnx.load(exported / name)) == [
        (
            "quantize: keep: the module 'body.1.bn' is no longer in the graph: it was folded into the Conv of "
            "'body.1.conv'"
        ),
        "  in place of 'body.1.bn' write body.1.conv",
    ]


@pytest.mark.parametrize("name", ["exported.onnx", "simplified.onnx"])
def test_a_module_without_nodes_is_told_from_a_slip(exported: Path, name: str) -> None:
    model = onnx.load(exported / name)
    assert refusal(["dropout", "unused"], model) == [
        (
            "quantize: keep: the module 'dropout' (Dropout) left no node in the graph: it does nothing in inference; "
            "the module 'unused' (Linear) left no node in the graph: it was folded into constants or other modules, "
            "or never called"
        ),
        "  take 'dropout' out of keep: nothing is computed for it alone",
        "  take 'unused' out of keep: nothing is computed for it alone",
    ]
    assert "'dropouts' is neither" in refusal(["dropouts"], model)[0]


@pytest.mark.parametrize("stage", [quantize_tensorrt, quantize_float8, quantize_blocks])
def test_every_variant_in_few_bits_knows_the_models_modules(
    exported: Path, stage: Callable[[onnx.ModelProto, Sequence[str]], object]
) -> None:
    with pytest.raises(StageError, match=r"the module 'dropout' \(Dropout\) left no node"):
        stage(onnx.load(exported / "simplified.onnx"), ["dropout"])


def test_a_graph_from_elsewhere_names_no_modules(exported: Path) -> None:
    model = onnx.load(exported / "simplified.onnx")
    del model.metadata_props[:]
    assert "'dropout' is neither" in refusal(["dropout"], model)[0]
    assert "was folded into" in refusal(["stem.bn"], model)[0]  # which its nodes say


def test_no_path_of_this_machine_is_exported(exported: Path) -> None:
    assert str(Path(__file__).parent).encode() not in (exported / "exported.onnx").read_bytes()


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        ("['', 'layer1', 'layer1.0', 'layer1.0.conv1', 'conv2d']", "layer1.0.conv1"),
        ("['', 'relu']", ""),
        ("['', 'shared@1', 'conv2d_4']", "shared"),
        ("['', 'a@2', 'a@2.b@1', 'add']", "a.b"),
        ("", ""),
        ("[]", ""),
        ("no list [", ""),
        ("'text'", ""),
    ],
)
def test_the_exporters_scopes_are_read(scopes: str, expected: str) -> None:
    made = helper.make_node("Conv", ["x", "w"], ["y"])
    assert module_of(made) == ""
    made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert module_of(made) == scope(scopes) == expected


def test_a_weight_that_two_modules_share_does_not_rename_the_second() -> None:
    """Only a node that the exporter rewrote is named after its weight."""
    metadata = {"pkg.torch.onnx.name_scopes": "['', 'head', 'linear']"}
    assert origin(metadata, ["embedding.weight"], {"embedding", "head"}) == "head"
    rewritten = {**metadata, "pkg.onnxscript.rewriter.rule_name": "FuseBatchNormIntoConv"}
    assert origin(rewritten, ["embedding.weight"], {"embedding", "head"}) == "embedding"
    assert origin(rewritten, ["constant"], {"embedding", "head"}) == "head"
    assert origin({}, ["embedding.weight"], {"embedding"}) is None


def test_paths_of_a_module() -> None:
    assert [*paths("layer1.0.conv1")] == ["layer1.0.conv1", "layer1.0", "layer1"]
    assert [*paths("")] == []
