"""verify finds a wrong child, says where, and lets a right one pass."""

import re

import numpy as np
import pytest

from optimizer.errors import StageError
from optimizer.runtime.session import Session
from optimizer.stage import Tolerance
from optimizer.types import TensorSpec
from optimizer.verify import MANY_ELEMENTS, verify

LOOSE = Tolerance("float32 sums in another order", atol=1e-6, rtol=1e-5)
SQNR = Tolerance("weights in int8", min_sqnr_db=30.0, exact_integers=False)
FEEDS = {b: {"x": np.random.default_rng(b).normal(size=(b, 5)).astype(np.float32)} for b in (1, 3, 4, 8)}


class Model(Session):
    """Calls a function; `outputs` are what it returns for two samples."""

    def __init__(self, function):
        self.function = function
        self.inputs = (TensorSpec("x", "float32", ("batch", 5)),)
        shown = function(FEEDS[3]["x"])
        self.outputs = tuple(TensorSpec(n, str(a.dtype), ("batch", *a.shape[1:])) for n, a in shown.items())

    def infer(self, feed):
        return self.function(feed["x"])

    def bind(self, feed):
        return lambda: None


def model(function):
    return Model(lambda x: {"y": function(x)})


PARENT = model(lambda x: 2 * x)


def check(child, parent=PARENT, tolerance=LOOSE):
    return verify(parent, child, FEEDS, tolerance, what="stage 'simplify'")


def broken_at(batch, change):
    def function(x):
        y = 2 * x
        return change(y) if len(x) == batch else y

    return model(function)


def put(value, row=1, column=2):
    def change(y):
        y[row, column] = value
        return y

    return change


def test_equal_outputs_pass_and_say_so():
    assert check(model(lambda x: x + x)) == ["output 'y' at batch 1, 3, 4, 8: equal"]


def test_rounding_passes_with_its_worst_difference():
    notes = check(model(lambda x: (2 * x * np.float32(1.000001)).astype(np.float32)))
    assert re.fullmatch(r"output 'y' at batch 1, 3, 4, 8: max abs difference .*e-06, SQNR 1[12]\d\.\d dB", notes[0])


def test_child_wrong_at_batch_3_only_is_caught_and_located():
    with pytest.raises(StageError) as caught:
        check(broken_at(3, put(77.0)))
    text = str(caught.value)
    value = 2 * FEEDS[3]["x"][1, 2]
    assert text.startswith(
        f"stage 'simplify': output 'y' at batch 3 is 77 at index [1, 2]; the parent's is {value:.6g} (max abs"
    )
    assert "allowed: a difference of at most 1e-06 + 1e-05 * |value| (float32 sums in another order)" in text


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_where_the_parent_is_finite_fails_whatever_the_tolerance(value):
    anything = Tolerance("none", atol=np.inf, min_sqnr_db=-np.inf)
    with pytest.raises(StageError, match=r"at batch 4 is (nan|-?inf) at index \[1, 2\]; the parent's is"):
        check(broken_at(4, put(value)), tolerance=anything)


def test_nan_where_the_parent_has_nan_passes():
    holes = model(lambda x: np.where(x > 0, x, np.float32(np.nan)))
    assert check(holes, parent=holes) == ["output 'y' at batch 1, 3, 4, 8: equal"]


def test_finite_where_the_parent_is_infinite_fails():
    parent = model(lambda x: np.where(x > 0, x, np.float32(-np.inf)))
    with pytest.raises(StageError, match="the parent's is -inf"):
        check(model(lambda x: np.where(x > 0, x, np.float32(-65504))), parent=parent, tolerance=SQNR)


def test_sqnr_limit_has_both_sides():
    def noisy(db):
        return model(lambda x: (2 * x * (1 + 10 ** (-db / 20) * np.sign(x))).astype(np.float32))

    check(noisy(31), tolerance=SQNR)
    with pytest.raises(StageError, match=r"SQNR 29\.0 dB\)\n  allowed: an SQNR of at least 30 dB \(weights in int8\)"):
        check(noisy(29), tolerance=SQNR)


def regressor(near_zero, error, sizes=(1, 3, 8)):
    """A scalar regressor: batch 1 is one sample, whose value the parent puts near zero; the child adds an error."""
    feeds = {b: {"x": np.linspace(near_zero, 4.0, 8).reshape(8, 1)[:b].repeat(5, axis=1)} for b in sizes}
    parent = model(lambda x: x[:, :1])
    child = model(lambda x: x[:, :1] + error(len(x)))
    return feeds, parent, child


def test_a_single_value_near_zero_is_no_fault():
    """Rounding is a share of the range: 0.01 on values up to 4, and on one of 0.001."""
    feeds, parent, child = regressor(0.001, lambda _: 0.01)
    note = verify(parent, child, feeds, SQNR, what="x")[0]
    assert "max abs difference 0.01, SQNR 46.0 dB" in note


def test_a_batch_beyond_the_range_of_all_is_caught_however_few_values_it_has():
    for broken in (1, 3, 8):
        feeds, parent, child = regressor(0.001, lambda size, broken=broken: 0.01 + 0.2 * (size == broken))
        with pytest.raises(StageError, match=f"output 'y' at batch {broken} is"):
            verify(parent, child, feeds, SQNR, what="x")


def test_a_batch_of_zeros_is_held_to_the_other_batches():
    feeds, parent, child = regressor(0.0, lambda _: 0.01)
    assert verify(parent, child, feeds, SQNR, what="x")
    zeros = {b: {"x": np.zeros((b, 5))} for b in (1, 3)}
    with pytest.raises(StageError, match="SQNR -inf dB"):
        verify(parent, child, zeros, SQNR, what="x")


@pytest.mark.parametrize(("width", "caught"), [(MANY_ELEMENTS // 3 + 1, True), (20, False)])
def test_a_batch_of_many_elements_is_held_to_its_own_power_as_well(width, caught):
    """Batch 3 is a hundredth of the others, with an error of a tenth of itself: 20 dB of its own, 60 of all."""
    rng = np.random.default_rng(0)
    feeds = {b: {"x": rng.normal(size=(b, width)) * (0.01 if b == 3 else 1.0)} for b in (1, 3, 8)}
    parent = model(lambda x: x)
    child = model(lambda x: x * (1.1 if len(x) == 3 else 1.0))
    if not caught:
        assert verify(parent, child, feeds, SQNR, what="x")
        return
    with pytest.raises(StageError, match=r"output 'y' at batch 3 .* SQNR 20\.0 dB"):
        verify(parent, child, feeds, SQNR, what="x")


def test_child_wrong_at_batch_3_only_is_caught_by_its_sqnr():
    with pytest.raises(StageError, match=r"output 'y' at batch 3 is 77 at index \[1, 2\]"):
        check(broken_at(3, put(77.0)), tolerance=SQNR)


def test_either_limit_suffices_where_both_are_stated():
    both = Tolerance("x", atol=1e-3, min_sqnr_db=60.0)
    tiny = model(lambda x: x * np.float32(1e-5))
    check(model(lambda x: x * np.float32(1.1e-5)), parent=tiny, tolerance=both)
    check(
        model(lambda x: x * np.float32(1e6 * (1 + 1e-5))), parent=model(lambda x: x * np.float32(1e6)), tolerance=both
    )
    with pytest.raises(StageError, match=r"at most 0\.001 \+ 0 \* \|value\| or an SQNR of at least 60 dB"):
        check(model(lambda x: x * np.float32(2.1)), tolerance=both)


def test_huge_values_have_a_finite_sqnr():
    huge = model(lambda x: x.astype(np.float64) * 1e300)
    notes = check(model(lambda x: x.astype(np.float64) * 1.0001e300), parent=huge, tolerance=SQNR)
    assert "SQNR 80.0 dB" in notes[0]


def test_integers_must_be_equal_where_precision_is_kept():
    parent = model(lambda x: x.argmax(axis=1))
    check(parent, parent=parent)
    with pytest.raises(StageError, match=r"at batch 3 is 9 at index \[1\]; the parent's is \d \(1 of 3 differ\)"):
        check(model(lambda x: np.where((len(x) == 3) & (np.arange(len(x)) == 1), 9, x.argmax(axis=1))), parent=parent)


def test_integers_may_flip_where_precision_changes_but_not_many():
    parent = model(lambda x: x.argmax(axis=1))
    once = model(lambda x: np.where((len(x) == 8) & (np.arange(len(x)) == 3), 9, x.argmax(axis=1)))
    assert "93.75% of 16 integers equal" in check(once, parent=parent, tolerance=SQNR)[0]
    with pytest.raises(StageError, match=r"equals the parent's in 0\.0% only; allowed: at least 80%"):
        check(model(lambda x: x.argmax(axis=1) + 7), parent=parent, tolerance=SQNR)


def test_float_for_integer_is_refused():
    with pytest.raises(StageError, match="is float64; the parent's is int64"):
        check(model(lambda x: x.argmax(axis=1).astype(np.float64)), parent=model(lambda x: x.argmax(axis=1)))


def test_other_shape_is_refused():
    with pytest.raises(StageError, match=r"at batch 1 has shape \[1, 4\]; the parent's is \[1, 5\]"):
        check(model(lambda x: 2 * x[:, :4]))


def test_other_names_or_order_are_refused():
    with pytest.raises(StageError, match="outputs are b, a; its parent's are a, b"):
        check(Model(lambda x: {"b": x, "a": x}), parent=Model(lambda x: {"a": x, "b": x}))


def test_parent_need_not_know_its_output_shapes_beforehand():
    # A torch module would have to run on made-up sizes for that, which a model with a smallest size refuses.
    parent = model(lambda x: 2 * x)
    del parent.outputs
    assert check(model(lambda x: 2 * x), parent=parent)


def test_sample_that_depends_on_its_batch_is_caught():
    # Right on average at every batch as far as SQNR sees, but row 0 of the largest batch mixes with its neighbour.
    def mixes(x):
        y = 2 * x
        if len(x) == 8:
            y[0] = y[0] * 0.9 + y[1] * 0.1
        return y

    loose = Tolerance("x", min_sqnr_db=20.0)
    with pytest.raises(StageError, match=r"output 'y' at sample 0 alone .*; the same sample inside batch 8's is"):
        check(model(mixes), tolerance=loose)


def test_model_that_couples_its_samples_by_design_passes_with_a_note():
    centred = model(lambda x: x - x.mean(axis=0))
    notes = check(centred, parent=centred)
    assert notes[1:] == ["output 'y': a sample's result depends on its batch, in the parent as well"]


def test_without_inputs_nothing_is_verified():
    with pytest.raises(StageError, match="there are no inputs to compare on"):
        verify(PARENT, PARENT, {}, LOOSE, what="x")
