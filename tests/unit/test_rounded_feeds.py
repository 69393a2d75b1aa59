"""float32 given to a float16 input: rounded, and refused beyond what float16 holds, whatever lies beside it."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from optimizer.errors import UsageError
from optimizer.runtime.feed import check_feed
from optimizer.types import TensorSpec

HALF = (TensorSpec("x", "float16", ("batch", 2)),)


def given(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 2)


@pytest.mark.parametrize("values", [(7e4, 0.0), (-7e4, np.nan), (np.nan, 7e4), (1.0, 7e4, np.nan, 2.0)])
def test_a_value_beyond_float16_is_refused_also_beside_one_that_is_no_number(values: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="here: input 'x' reaches 70000, and float16 ends at 65504"):
        check_feed(HALF, {"x": given(*values)}, "here")


def test_a_value_is_refused_from_where_it_rounds_to_infinity() -> None:
    below = np.nextafter(np.float32(65520), np.float32(0))
    assert check_feed(HALF, {"x": given(below, 0.0)}, "here")["x"][0, 0] == 65504
    with pytest.raises(UsageError, match="reaches 65520, and float16 ends at 65504"):
        check_feed(HALF, {"x": given(65520.0, 0.0)}, "here")


@pytest.mark.parametrize("values", [(1.0001, -65504.0), (np.nan, 1.0), (np.nan, np.nan), ()])
def test_what_float16_holds_is_rounded_and_what_is_no_number_is_left_to_the_caller(values: tuple[float, ...]) -> None:
    array = given(*values)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check_feed(HALF, {"x": array}, "here")["x"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, array.astype(np.float16))
