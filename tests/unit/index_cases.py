"""Operators of positions, indices and masks for `test_differentiable`: the activation, constants, and attributes."""

from __future__ import annotations

from typing import Any

import numpy as np

RNG = np.random.default_rng(1)


def floats(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


def one(value: float, kind: Any = np.int64) -> Any:
    return np.array(value, dtype=kind)


IDS = RNG.integers(-4, 5, (2, 7))
POSITIVE_IDS = RNG.integers(0, 200, (2, 7))
MASK = IDS > 0
TABLE = floats(3, 4, 5)
EITHER, OTHER = np.array([False, True]), np.array([[False], [True]])  # every pair of them
ODD = np.array([0.0, np.inf, -np.inf, np.nan, -2.5, -0.5, 0.5, 1.5], np.float32)
STEPS = np.array([-2.5, -1.5, -0.5, -0.2, 0.0, 0.5, 0.7, 1.5, 2.5], np.float32)

INDEX_CASES: dict[str, list[tuple[Any, list[Any], dict[str, Any]]]] = {
    "Range": [
        (one(0), [one(9), one(1)], {}),
        (one(9), [one(-2), one(-3)], {}),
        (one(3), [one(3), one(1)], {}),  # none
        (one(5), [one(3), one(1)], {}),
        (one(1, np.int32), [one(8, np.int32), one(2, np.int32)], {}),
        (one(0.5, np.float32), [one(3.1, np.float32), one(0.3, np.float32)], {}),
    ],
    "CumSum": [
        (IDS, [one(1)], {}),
        (IDS, [one(-1)], {"exclusive": 1}),
        (IDS.astype(np.int32), [one(0)], {"reverse": 1}),
        (TABLE, [one(2)], {"reverse": 1, "exclusive": 1}),
    ],
    "Trilu": [
        (TABLE, [], {}),
        (TABLE, [one(1)], {"upper": 1}),
        (TABLE, [one(-1)], {"upper": 0}),
        (np.ones((5, 5), dtype=bool), [one(0)], {"upper": 0}),
        (np.full((4, 4), -np.inf, np.float32), [one(1)], {"upper": 1}),
        (IDS, [one(2)], {"upper": 0}),
    ],
    "EyeLike": [(IDS, [], {}), (TABLE[0], [], {"k": -1, "dtype": 7}), (IDS, [], {"k": 2, "dtype": 1})],
    "OneHot": [
        (IDS, [one(5), ints(0, 1)], {}),
        (IDS, [one(4), np.array([-0.5, 2.0], np.float32)], {"axis": 1}),  # 4 and -5 are out of its range
    ],
    "ArgMax": [
        (TABLE, [], {}),
        (IDS, [], {"axis": -1, "keepdims": 0}),
        (IDS, [], {"axis": 1, "select_last_index": 1}),
    ],
    "ArgMin": [(TABLE, [], {"axis": 1}), (IDS, [], {"axis": -1, "select_last_index": 1, "keepdims": 0})],
    "TopK": [
        (TABLE, [ints(2)], {}),
        (IDS, [ints(4)], {"axis": 1, "largest": 0}),  # with equals
        (IDS, [ints(7)], {"axis": -1}),
    ],
    "NonZero": [(IDS, [], {}), (MASK, [], {}), (np.zeros((2, 3), dtype=bool), [], {})],
    "GatherElements": [
        (TABLE, [RNG.integers(-4, 4, (3, 2, 5))], {"axis": 1}),
        (IDS, [RNG.integers(0, 2, (1, 7)).astype(np.int32)], {}),
    ],
    "GatherND": [
        (TABLE, [ints(0, 3, -1, -4).reshape(2, 2)], {}),
        (TABLE, [ints(2, 0, 1).reshape(3, 1)], {"batch_dims": 1}),
        (TABLE, [RNG.integers(-5, 5, (3, 4, 2, 1))], {"batch_dims": 2}),
        (IDS, [ints(1, 6).reshape(1, 1, 2)], {}),
        (MASK, [ints(1).reshape(1, 1)], {}),
    ],
    "ScatterElements": [
        (TABLE, [RNG.permuted(np.tile(np.arange(4), (5, 1)), axis=1).T[None, :3], floats(1, 3, 5)], {"axis": 1}),
        (IDS, [ints(0, -1).reshape(1, 2), ints(70, 80).reshape(1, 2)], {"axis": -1}),
        (TABLE, [np.zeros((2, 4, 5), np.int64), floats(2, 4, 5)], {"reduction": "add"}),
        (TABLE, [np.zeros((2, 4, 5), np.int64), floats(2, 4, 5)], {"reduction": "max"}),
    ],
    "ScatterND": [
        (TABLE, [ints(0, 3, -1, -4).reshape(2, 2), floats(2, 5)], {}),
        (IDS, [ints(1, 6).reshape(1, 2), ints(77)], {}),
        (MASK, [ints(1).reshape(1, 1), np.ones((1, 7), dtype=bool)], {}),
        *(
            (TABLE, [ints(1, 1, 0).reshape(3, 1), floats(3, 4, 5)], {"reduction": how})
            for how in ("add", "mul", "max", "min")
        ),
    ],
    "Size": [(TABLE, [], {}), (MASK, [], {})],
    "Tile": [(IDS, [ints(2, 3)], {}), (TABLE, [ints(1, 2, 1)], {}), (MASK, [ints(1, 0)], {})],
    "CastLike": [(MASK, [one(0.0, np.float32)], {}), (STEPS, [one(0)], {})],
    "Max": [(TABLE, [floats(4, 1), floats(5)], {}), (IDS, [one(0)], {}), (TABLE, [], {})],
    "Min": [(TABLE, [floats(4, 1), floats(5)], {}), (IDS.astype(np.int32), [one(1, np.int32)], {})],
    "Mod": [(IDS, [one(3)], {}), (IDS, [one(-3)], {"fmod": 1}), (STEPS, [one(0.7, np.float32)], {"fmod": 1})],
    **{name: [(STEPS, [], {})] for name in ("Floor", "Ceil", "Round", "Sign")},
    "IsNaN": [(ODD, [], {})],
    "IsInf": [(ODD, [], {}), (ODD, [], {"detect_positive": 0}), (ODD, [], {"detect_negative": 0})],
    **{name: [(EITHER, [OTHER], {})] for name in ("And", "Or", "Xor")},
    **{name: [(POSITIVE_IDS, [one(6)], {}), (IDS, [ints(*range(7))], {})] for name in ("BitwiseAnd", "BitwiseOr")},
    "BitwiseXor": [(IDS, [one(5)], {})],
    "BitwiseNot": [(IDS, [], {})],
    "BitShift": [
        (POSITIVE_IDS.astype(np.uint64), [one(2, np.uint64)], {"direction": "RIGHT"}),
        (POSITIVE_IDS.astype(np.uint32), [one(3, np.uint32)], {"direction": "LEFT"}),
        (np.array([1 << 63], np.uint64), [one(1, np.uint64)], {"direction": "RIGHT"}),
    ],
    "ReduceMin": [(TABLE, [ints(1)], {}), (IDS, [ints(-1)], {"keepdims": 0})],
    "ReduceMax": [(IDS, [ints(1)], {"keepdims": 0}), (MASK, [ints(1)], {})],
    "ReduceSum": [(IDS.astype(np.int32), [ints(1)], {"keepdims": 0}), (IDS, [], {})],
    "ReduceProd": [
        (TABLE, [ints(0, -1)], {"keepdims": 0}),
        (IDS.astype(np.int32), [], {}),
        (TABLE, [], {"noop_with_empty_axes": 1}),
    ],
    # Operators of floats, on what positions and masks give them.
    "Cast": [(MASK, [], {"to": 7}), (IDS, [], {"to": 9}), (STEPS, [], {"to": 7}), (POSITIVE_IDS, [], {"to": 13})],
    "Pad": [
        (MASK, [ints(0, 1, 0, 0), np.array(True)], {}),
        (IDS, [ints(0, 2, 0, -1), one(9)], {}),
    ],
    "Clip": [(IDS, [one(0)], {}), (IDS, [None, one(2)], {})],
    "Where": [(MASK, [IDS, one(-7)], {}), (MASK, [one(0.0, np.float32), one(-np.inf, np.float32)], {})],
    "Expand": [(MASK[:, None], [ints(2, 3, 7)], {})],
    "Slice": [(MASK, [ints(-3), ints(2**63 - 1), ints(1)], {})],
    "Concat": [(IDS, [ints(1, 2).reshape(2, 1)], {"axis": -1})],
    "Gather": [(IDS, [ints(0, -1, 1).reshape(3, 1)], {"axis": 1}), (MASK, [one(1)], {})],
    "Abs": [(IDS, [], {})],
    "Neg": [(IDS, [], {})],
    "Pow": [(IDS, [one(2)], {})],
    "Equal": [(MASK, [np.array(True)], {}), (IDS, [one(1)], {})],
    **{name: [(IDS, [one(1)], {})] for name in ("Add", "Sub", "Mul", "Less", "Greater", "LessOrEqual")},
    "GreaterOrEqual": [(IDS.astype(np.int32), [one(1, np.int32)], {})],
    "ConstantOfShape": [(ints(2, 0), [], {}), (ints(), [], {})],
    "Softmax": [(np.array([[-np.inf, -np.inf], [0.0, -np.inf]], np.float32), [], {})],
    # Exactly as masks are divided into blocks: towards zero.
    "Div": [(IDS, [one(2)], {})],
}
