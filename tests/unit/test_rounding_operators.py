"""The rounding emulator operator by operator: against torch half, torch bfloat16 and onnx.reference.

A step is the distance between two neighbouring numbers of the format. Both sides accumulate in float32 and round once,
in unlike orders: results lie in the same or in neighbouring numbers, but for sums that cancel to near zero.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from rounding_cases import CASES, NODE, Case, Floats, normal

from optimizer.graph.rounding import emulate_rounding
from optimizer.runtime.onnx import OnnxSession

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
KINDS = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
# float32 sums in another order differ by some 2^-24 of the summands, some of which are above 10: visible where the
# result cancels to near 0.
ACCUMULATION = 4e-6


def rounded(values: Floats, name: str) -> Floats:
    found: Floats = torch.from_numpy(np.asarray(values)).to(DTYPES[name]).float().numpy()
    return found


def narrow_constant(values: Floats, kind: str, name: str) -> onnx.TensorProto:
    array = rounded(values, kind).astype(helper.tensor_dtype_to_np_dtype(KINDS[kind]))
    return numpy_helper.from_array(array, name)


def graph(case: Case, kind: str | None) -> onnx.ModelProto:
    """The operator between two Casts, or without them and in float32 throughout (`kind` None)."""
    node = onnx.NodeProto()
    node.CopyFrom(case.node)
    nodes = [node]
    fixed = [numpy_helper.from_array(values, name) for name, values in case.fixed.items()]
    if kind is None:
        constants = [numpy_helper.from_array(values, name) for name, values in case.constants.items()]
    else:
        constants = [narrow_constant(values, kind, name) for name, values in case.constants.items()]
        node.input[0], node.output[0] = "narrow_x", "narrow_y"
        nodes = [
            NODE("Cast", ["x"], ["narrow_x"], to=KINDS[kind]),
            node,
            NODE("Cast", ["narrow_y"], ["y"], to=TensorProto.FLOAT),
        ]
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.x.shape)]
    made = helper.make_graph(
        nodes, "g", ports, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [*constants, *fixed]
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model, full_check=True)
    return model


def emulated(case: Case, kind: str, folder: Path) -> Floats:
    onnx.save(graph(case, kind), folder / "source.onnx")
    emulate_rounding(folder / "source.onnx", folder / "emulated.onnx")
    with OnnxSession(folder / "emulated.onnx", optimize=False) as session:
        found: Floats = session.infer({"x": rounded(case.x, kind)})["y"]
    return found


def in_torch(case: Case, kind: str) -> Floats:
    dtype = DTYPES[kind]
    arguments = [torch.from_numpy(np.asarray(values)).to(dtype) for values in (case.x, *case.constants.values())]
    result = case.torch(*arguments)
    assert result.dtype == dtype
    found: Floats = result.float().numpy()
    return found


def steps(a: Floats, b: Floats, kind: str) -> NDArray[np.int64]:
    """How many numbers of the format lie between two arrays of such numbers."""

    def rank(x: Floats) -> NDArray[np.int64]:
        bits: NDArray[np.int64] = torch.from_numpy(x.copy()).to(DTYPES[kind]).view(torch.int16).numpy().astype(np.int64)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    return np.abs(rank(a) - rank(b))


# torch rounds inside these: the logarithm of a sum and the shifted argument; mean, scale over deviation and offset. So
# many roundings at the largest magnitude inside are allowed on top; the reference test holds them to one step.
INSIDE = {"LogSoftmax": 2, "InstanceNormalization": 3}


def inside(name: str, kind: str, expected: Floats) -> float:
    largest = max(float(np.abs(CASES[name].x).max()), float(np.abs(expected).max()))
    return INSIDE.get(name, 0) * float(torch.finfo(DTYPES[kind]).eps) / 2 * largest


def far(found: Floats, expected: Floats, kind: str) -> NDArray[np.bool_]:
    return (steps(found, expected, kind) > 1) & (np.abs(found - expected) > ACCUMULATION)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_each_operator_gives_torch_within_one_step(name: str, kind: str, tmp_path: Path) -> None:
    found, expected = emulated(CASES[name], kind, tmp_path), in_torch(CASES[name], kind)
    np.testing.assert_array_equal(found, rounded(found, kind))
    beyond = far(found, expected, kind) & (np.abs(found - expected) > inside(name, kind, expected))
    assert not beyond.any(), f"up to {steps(found, expected, kind).max()} steps"


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_each_operator_gives_the_reference_rounded_within_one_step(name: str, kind: str, tmp_path: Path) -> None:
    """The reference evaluator in float32, on numbers of the format, rounded once at the end."""
    case = CASES[name]
    constants = {key: rounded(values, kind) for key, values in case.constants.items()}
    model = graph(Case(case.node, case.torch, case.x, constants, case.fixed), None)
    expected = rounded(ReferenceEvaluator(model).run(None, {"x": rounded(case.x, kind)})[0].astype(np.float32), kind)
    assert not far(emulated(case, kind, tmp_path), expected, kind).any()


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", ["Conv", "Gemm", "Softmax", "Gelu", "LayerNormalization", "Exp", *INSIDE])
def test_one_step_is_a_tolerance_that_coarser_rounding_fails(name: str, kind: str, tmp_path: Path) -> None:
    found, expected = emulated(CASES[name], kind, tmp_path), in_torch(CASES[name], kind)
    bits = torch.from_numpy(found).to(DTYPES[kind]).view(torch.int16) & -8  # three bits fewer
    coarse = bits.view(DTYPES[kind]).float().numpy()
    allowed = inside(name, kind, expected)
    assert (far(coarse, expected, kind) & (np.abs(coarse - expected) > allowed)).mean() > 0.05


@pytest.mark.parametrize("name", ["Add", "Gelu", "Conv"])
def test_a_format_is_not_taken_for_the_other(name: str, tmp_path: Path) -> None:
    found = emulated(CASES[name], "float16", tmp_path)
    assert (found != rounded(found, "bfloat16")).mean() > 0.5
    assert far(rounded(found, "bfloat16"), in_torch(CASES[name], "float16"), "float16").mean() > 0.4


def recurrent(kind: str) -> tuple[onnx.ModelProto, torch.nn.LSTM, Floats]:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(8, 6).to(DTYPES[kind])
    weights = {name: value.detach().float().numpy() for name, value in lstm.named_parameters()}

    def gates(array: Floats) -> Floats:
        i, f, g, o = np.split(array, 4)  # torch's order; ONNX has i, o, f, c
        return np.concatenate([i, o, f, g])[None]

    bias = np.concatenate([gates(weights["bias_ih_l0"]), gates(weights["bias_hh_l0"])], 1)
    constants = {"w": gates(weights["weight_ih_l0"]), "r": gates(weights["weight_hh_l0"]), "b": bias}
    node = NODE("LSTM", ["x", "w", "r", "b"], ["y"], hidden_size=6)
    x = rounded(normal(5, 3, 8), kind)
    return graph(Case(node, torch.tanh, x, constants), kind), lstm, x


@pytest.mark.parametrize("kind", DTYPES)
def test_an_lstm_rounds_what_it_writes_and_stays_near_torch(kind: str, tmp_path: Path) -> None:
    """The emulator rounds a layer's output once, as a fused kernel with float32 state; torch rounds gates and states.

    Numeric: five steps of five roundings (four gates, the state) of values below 1 allow 25 half steps, u = eps / 2.
    """
    model, lstm, x = recurrent(kind)
    onnx.save(model, tmp_path / "source.onnx")
    emulate_rounding(tmp_path / "source.onnx", tmp_path / "emulated.onnx")
    with OnnxSession(tmp_path / "emulated.onnx", optimize=False) as session:
        found = session.infer({"x": x})["y"][:, 0]
    with torch.no_grad():
        half = lstm(torch.from_numpy(x).to(DTYPES[kind]))[0].float().numpy()
        exact = lstm.float()(torch.from_numpy(x))[0].numpy()
    unit = float(torch.finfo(DTYPES[kind]).eps) / 2
    assert np.abs(found - half).max() <= 25 * unit
    assert not far(found, rounded(exact, kind), kind).any()
    assert np.abs(np.roll(found, 1, 0) - half).max() > 25 * unit  # the twin: one step late
