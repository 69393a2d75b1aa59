"""inspect A B over two engines: totals, then what differs by layer, joined by the ONNX nodes behind the kernels."""

import json

import onnx
import pytest
from test_inspect import engine, graph, show
from test_inspect_layers import named

from optimizer.cli.engines import engine_lines
from optimizer.graph.difference import difference
from optimizer.graph.engine_difference import engine_difference
from optimizer.graph.inspect import inspect


def kernel(kind, nodes, types, **more):
    """A layer that reads the first type and writes the last one."""
    read, write = types.split(">")
    sides = {side: [{"tensor": side, "type": t, "format": t}] for side, t in (("inputs", read), ("outputs", write))}
    return {"name": more.pop("name", f"{kind}_0"), "kind": kind, "onnx_nodes": list(nodes), **sides} | more


def layer(node, module, operator, macs, delivered):
    return {"node": node, "module": module, "operator": operator, "macs": macs, "requested": delivered} | {
        "delivered": delivered,
        "reason": "",
    }


OPERATORS = {"conv": "Conv", "relu": "Relu", "pool": "MaxPool", "fc": "Gemm"}


def float_engine():
    return {
        "kind": "engine",
        "path": "a/engine.json",
        "bytes": 2_500_000,
        "precision": {"fp32": 1.0},
        "layers": [
            kernel("kgen", [], "Float>Float", name="__myl_Move_myl0_0", time_ms=0.05),
            kernel("correlation", ["conv", "relu"], "Float>Float", time_ms=0.5),
            kernel("maxpool", ["pool"], "Float>Float", time_ms=0.2),
            kernel("gemm", ["fc"], "Float>Float", time_ms=0.25),
        ],
        "nodes": [layer("conv", "stem.conv", "Conv", 900, "fp32"), layer("fc", "head", "Gemm", 100, "fp32")],
        "graph_nodes": OPERATORS,
    }


def int8_engine():
    return {
        "kind": "engine",
        "path": "b/engine.json",
        "bytes": 1_400_000,
        "precision": {"fp32": 0.1, "int8": 0.9},
        "layers": [
            kernel("kgen", ["q"], "Float>Int8", time_ms=0.03),
            kernel("correlation", ["node_1", "dq"], "Int8>Float", time_ms=0.2),
            kernel("kgen", ["relu", "node_1"], "Float>Int8", time_ms=0.05),
            kernel("maxpool", ["pool"], "Int8>Float", time_ms=0.1),
            kernel("gemm", ["fc"], "Float>Float", time_ms=0.25),
        ],
        # Another export gave the convolution another name.
        "nodes": [layer("node_1", "stem.conv", "Conv", 900, "int8"), layer("fc", "head", "Gemm", 100, "fp32")],
        "graph_nodes": {**OPERATORS, "node_1": "Conv", "q": "QuantizeLinear", "dq": "DequantizeLinear"},
    }


def test_the_screen_of_two_engines():
    found = difference(float_engine(), int8_engine())
    assert list(engine_lines(found, ["a", "b"])) == [
        "A  a",
        "B  b",
        "                     A                B",
        "plan                 2,500,000 bytes  1,400,000 bytes",
        "precision of MACs    fp32 100.0%      fp32 10.0%, int8 90.0%",
        "kernels              4                5",
        "that only move data  1                0",
        "kernel time          1.000 ms         0.630 ms",
        "layers that differ   1, 90.0% of the work",
        "  stem.conv  Conv   90.0%  fp32 -> int8; 1 -> 2 kernels; 0.500 -> 0.250 ms",
        "other nodes that differ   1",
        "  relu  Relu  fp32; correlation -> kgen; 0.500 -> 0.050 ms",
        "only in B   2 nodes: 1 QuantizeLinear, 1 DequantizeLinear",
    ]


def test_all_of_it_is_in_json():
    found = engine_difference(float_engine(), int8_engine())
    assert found["totals"]["kernels"] == [4, 5]
    assert found["layers"] == [
        {
            "name": "stem.conv",
            "operator": "Conv",
            "macs": 900,
            "share": 0.9,
            "precision": ["fp32", "int8"],
            "kernels": [["correlation"], ["correlation", "kgen"]],
            "fused_only_first": [],
            "fused_only_second": [],
            "time_ms": [0.5, 0.25],
        }
    ]
    assert found["only_second"] == [
        {"name": "q", "operator": "QuantizeLinear"},
        {"name": "dq", "operator": "DequantizeLinear"},
    ]


def test_fusion_is_told_of_nodes_that_both_have():
    apart = float_engine()
    apart["layers"][1:2] = [kernel("correlation", ["conv"], "Float>Float"), kernel("kgen", ["relu"], "Float>Float")]
    found = engine_difference(float_engine(), apart)
    assert [row["name"] for row in found["layers"]] == ["stem.conv"]
    assert (found["layers"][0]["fused_only_first"], found["layers"][0]["fused_only_second"]) == (["relu"], [])
    lines = list(engine_lines(found, ["a", "b"]))
    assert "  stem.conv  Conv   90.0%  fp32; fused with relu in A only" in lines
    assert not any("kernel time" in line for line in lines)  # one side has none


def test_one_difference_is_nothing_twice():
    assert engine_difference(int8_engine(), int8_engine()) == {}
    assert list(engine_lines({}, ["a", "b"])) == ["nothing differs"]


def test_layers_that_differ_alike_share_a_line_and_the_odd_one_stands_out():
    def many(kind, odd):
        document = float_engine()
        names = [f"layer{i}" for i in range(30)]
        document["layers"] = [kernel("gemm", [n], f"{kind}>{odd if n == 'layer7' else kind}") for n in names]
        kinds = {"Float": "fp32", "Half": "fp16"}
        document["nodes"] = [layer(n, "", "Gemm", 10, kinds[odd if n == "layer7" else kind]) for n in names]
        return document

    lines = list(engine_lines(engine_difference(many("Float", "Float"), many("Half", "Float")), ["a", "b"]))
    assert lines[-1] == "  layer0, layer1 and 27 more  Gemm   96.7%  fp32 -> fp16"
    different = many("Half", "Half")
    different["layers"][7]["kind"] = "kgen"
    lines = list(engine_lines(engine_difference(many("Float", "Float"), different), ["a", "b"]))
    assert lines[-1] == "  layer7                      Gemm    3.3%  fp32 -> fp16; gemm -> kgen"


def test_engines_without_their_graph_are_compared_by_types(tmp_path):
    half = {"inputs": [{"tensor": "image", "type": "Half", "format": "Linear"}], "onnx_nodes": ["conv"]}
    half["outputs"] = [{"tensor": "y", "type": "Half", "format": "Linear"}]
    first, second = engine(tmp_path / "a"), engine(tmp_path / "b", layer=half, version="1.8")
    assert show(first, second).splitlines()[2:] == [
        "                     A            B",
        "plan                 1,000 bytes  1,000 bytes",
        "precision of MACs    fp32 100.0%  fp32 100.0%",
        "kernels              1            1",
        "that only move data  0            0",
        "other nodes that differ   1",
        "  conv  -  fp32 -> fp16",
        "only in A   1 node: relu",
        "version: 1.7.1 -> 1.8",
    ]
    assert json.loads(show(first, second, "--json"))["others"][0]["precision"] == ["fp32", "fp16"]
    assert show(first, first) == "nothing differs\n"


def test_an_engine_of_a_run_has_modules_and_moved_bytes(tmp_path):
    moves = {"name": "__myl_Move_myl0_1", "kind": "kgen", "onnx_nodes": []}
    tensor = {"tensor": "image", "type": "Float", "shape": [-1, 3, 8, 8]}
    moves |= {"inputs": [tensor | {"format": "NCHW"}], "outputs": [tensor | {"format": "NHWC"}]}
    folder = engine(tmp_path / "e", onnx_sha256="ab" * 32)
    receipt = json.loads((folder / "engine.json").read_text())
    receipt["layers"].insert(0, moves)
    (folder / "engine.json").write_text(json.dumps(receipt))
    (tmp_path / "graphs").mkdir()
    named(graph(tmp_path / "graphs" / ("ab" * 8) / "model.onnx"), "stem.conv")
    document = inspect(folder)
    assert [row["modules"] for row in document["layers"]] == [[], ["stem.conv"]]
    size = 2 * 4 * 3 * 8 * 8 * 4  # read and written, batch 4, float32
    assert document["layers"][0]["reformat"] == {"why": "layout", "bytes": size}
    lines = show(folder).splitlines()
    assert f"layers   2, of which move data only: 1 ({size:,} bytes), by engine.json" in lines
    assert "  kgen             Float          __myl_Move_myl0_1   (moves data: layout)" in lines


@pytest.mark.parametrize("opens", [True, False])
def test_the_plan_itself_is_read_where_a_gpu_opens_it(tmp_path, monkeypatch, opens):
    from optimizer.errors import StageError

    folder = engine(tmp_path / "e", onnx_sha256="ab" * 32, layer={"time_ms": 0.25})
    (tmp_path / "graphs").mkdir()
    path = named(graph(tmp_path / "graphs" / ("ab" * 8) / "model.onnx"), "stem.conv")
    onnx.checker.check_model(onnx.load(path))

    def read(plan, package):
        assert (plan.name, package) == ("engine.plan", "tensorrt_rtx")
        if not opens:
            raise StageError("the plan does not open here")
        return [kernel("CaskConvolution", ["conv"], "Half>Half", name="conv_1")]

    monkeypatch.setattr("optimizer.graph.inspect.missing", lambda package, device: None)
    monkeypatch.setattr("optimizer.graph.inspect.read_plan", read)
    document = inspect(folder)
    assert [row["time_ms"] for row in document["layers"]] == [0.25]  # measured when it was built
    if opens:
        assert document["layers_from"] == "the plan"
        assert document["precision"] == {"fp16": 1.0}
        assert document["nodes"][0]["delivered"] == "fp16"
    else:
        assert document["layers_from"] == "engine.json (the plan does not open here)"
        assert document["precision"] == {"fp32": 1.0}


def test_without_the_graph_the_receipt_says_what_a_node_computes_in():
    """Its kernels write several types: those of the node, of what is fused to it, of a kernel that quantizes for it."""
    alone = [{**document, "nodes": [], "graph_nodes": {}} for document in (float_engine(), int8_engine())]
    alone[1]["layers"][1]["onnx_nodes"] = ["conv", "dq"]
    told = [{**alone[0], "executed": {"conv": "fp32"}}, {**alone[1], "executed": {"conv": "int8"}}]
    found = {row["name"]: row["precision"] for row in engine_difference(*told)["others"]}
    assert found["conv"] == ["fp32", "int8"]
    blind = {row["name"]: row["precision"] for row in engine_difference(*alone).get("others", [])}
    assert blind.get("conv") != ["fp32", "int8"]


def test_one_engine_shows_its_profiles_and_the_options_it_was_built_with(tmp_path):
    small, large = ({"batch": {"min": low, "opt": low, "max": high}} for low, high in ((1, 1), (2, 16)))
    receipt = {
        "profiles": [small, large],
        "options": {"workspace": 1 << 30, "tf32": False, "refit": "identical"},
        "options_given": {"profiles": [small], "tf32": False, "timing_cache": {"path": "t.cache", "locked": True}},
        "timing_cache": {"locked": True, "began_with_sha256": "0123456789abcdef", "file_sha256": None},
        "retry": {"reason": "ran out of memory in a tactic", "workspace": [2 << 30, 1 << 30]},
        "trtexec": "trtexec --onnx=model.onnx",
    }
    screen = show(engine(tmp_path / "e", **receipt)).splitlines()
    at = screen.index("optimization profiles   2, by their index")
    assert screen[at + 1 : at + 3] == ["  0  batch: min 1, opt 1, max 1", "  1  batch: min 2, opt 2, max 16"]
    assert screen[at + 3 : at + 12] == [
        "builder options   * set by the recipe",
        "  * profiles  as listed above",
        "  * tf32  false",
        "  * timing_cache  path t.cache, locked true",
        "    workspace  1,073,741,824 bytes",
        "    refit  identical",
        "timing cache   locked, began with 01234567",
        "  ! ran out of memory in a tactic: built again with a workspace of 1,073,741,824 bytes, not 2,147,483,648",
        "the like by NVIDIA's own tool   trtexec --onnx=model.onnx",
    ]


def test_options_that_no_recipe_set_are_told_as_the_defaults(tmp_path):
    screen = show(engine(tmp_path / "e", options={"tf32": True}, options_given={}))
    assert "builder options   the defaults of the library\n    tf32  true" in screen


def test_one_profile_and_an_engine_without_a_record_of_options_take_no_line(tmp_path):
    screen = show(engine(tmp_path / "e", profiles=[{"batch": {"min": 1, "opt": 4, "max": 16}}]))
    assert "optimization profiles" not in screen
    assert "builder options" not in screen
    assert screen.count("batch: min 1, opt 4, max 16") == 1


def table(*kernels):
    """An engine of one convolution and what is beside it."""
    document = {**float_engine(), "nodes": [], "graph_nodes": {}, "executed": {}}
    return {**document, "layers": list(kernels)}


FLOATS = [{"tensor": "bias", "type": "Float", "format": ""}]


@pytest.mark.parametrize(
    ("kind", "types", "constants", "expected"),
    [
        # as TensorRT-RTX 1.7 builds them: 'MulAddAddReluMulMinMaxRounCast' reads float, and quantizes at its end
        ("kgen", "Float>Int8", FLOATS, "fp32"),
        ("kgen", "Half>Int8", [], "fp16"),
        ("kgen", "Half>FP8", FLOATS, "fp16"),
        ("correlation", "Int8>Int8", FLOATS, "fp32"),  # sums of 32 bits are scaled, then added to and activated
        ("correlation", "Int8>Half", FLOATS, "fp16"),
        ("maxpool", "Int8>Int8", [], "int8"),
        ("kgen", "Int64>Int64", [], "int64"),
        ("kgen", "Float>Half", [], "fp16"),
        ("kgen", "Bool>Bool", [], "bool"),
    ],
)
def test_what_is_fused_computes_in_the_float_of_its_kernel_and_not_in_what_that_writes(
    kind, types, constants, expected
):
    first = table(kernel("correlation", ["node"], "Double>Double"))
    second = table(kernel(kind, ["node"], types, constants=constants))
    (row,) = engine_difference(first, second)["others"]
    assert row["precision"] == ["double", expected]


def test_a_kernel_that_also_passes_its_input_on_in_float_is_of_one_type():
    both = kernel("kgen", ["node"], "Float>Int8")
    both["outputs"].append({"tensor": "residual", "type": "Float", "format": ""})
    (row,) = engine_difference(table(kernel("correlation", ["node"], "Float>Float")), table(both))["others"]
    assert row["precision"] == ["fp32", "fp32"]


def test_an_engine_in_a_run_names_its_plan_and_the_graph_where_it_lies(tmp_path):
    receipt = {"options_given": {}, "profiles": [], "retry": None, "options": {}, "trtexec": "as stored"}
    folder = engine(tmp_path / "fp32@tensorrt_rtx", onnx_sha256="ab" * 32, **receipt)
    (tmp_path / "graphs").mkdir()
    path = graph(tmp_path / "graphs" / ("ab" * 8) / "model.onnx")
    screen = show(folder / "engine.plan").splitlines()
    assert screen[0] == f"{folder / 'engine.plan'}   engine   1,000 bytes"
    line = next(line for line in screen if line.startswith("the like by"))
    assert f"--onnx={path} --saveEngine=fp32@tensorrt_rtx.plan " in line
    other = engine(tmp_path / "other@tensorrt_rtx", **receipt)
    assert "graph" not in json.loads(show(folder, other, "--json"))


def test_an_engine_without_its_graph_says_where_that_is(tmp_path):
    receipt = {
        "options_given": {},
        "profiles": [],
        "retry": None,
        "options": {},
        "trtexec": "trtexec --onnx=model.onnx",
    }
    screen = show(engine(tmp_path / "bundle", onnx_sha256="ab" * 32, **receipt)).splitlines()
    at = screen.index("the like by NVIDIA's own tool   trtexec --onnx=model.onnx")
    assert screen[at + 1] == (
        "  model.onnx, the graph it was built from, is not beside this engine: in its run's folder "
        "artifacts/graphs/abababababababab/"
    )


@pytest.mark.parametrize(
    ("stated", "expected"), [("fp16", "fp16"), ("fp32", "fp32"), ("bf16", "fp32"), ("int8", "fp32")]
)
def test_of_the_floats_in_a_kernel_the_graph_says_which_is_the_nodes_own(stated, expected):
    """'AddCast' adds in half and casts at its end; what no tensor of the kernel holds, it cannot compute in."""
    first = table(kernel("correlation", ["node"], "Double>Double"))
    second = {**table(kernel("kgen", ["node"], "Half>Float")), "graph_types": {"node": stated}}
    (row,) = engine_difference(first, second)["others"]
    assert row["precision"] == ["double", expected]


def test_the_types_of_the_graph_are_read_with_the_engine(tmp_path):
    folder = engine(tmp_path / "e", onnx_sha256="ab" * 32)
    (tmp_path / "graphs").mkdir()
    graph(tmp_path / "graphs" / ("ab" * 8) / "model.onnx")
    assert inspect(folder)["graph_types"]["conv"] == "fp32"
