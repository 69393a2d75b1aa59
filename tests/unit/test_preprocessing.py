from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from optimizer.errors import UsageError
from optimizer.runtime.preprocessing import Preprocessing, apply, to_dtype

PICTURE = np.random.default_rng(3).integers(0, 256, size=(8, 6, 3), dtype=np.uint8)
GREY = np.random.default_rng(4).uniform(0, 16, size=(8, 8)).astype(np.float32)


def test_no_steps_change_nothing() -> None:
    tokens = np.arange(5)
    assert apply((), tokens) is tokens or np.array_equal(apply((), tokens), tokens)
    assert apply((), tokens).dtype == tokens.dtype


def test_steps_never_change_the_array_given() -> None:
    before = PICTURE.copy()
    steps = [
        {"resize": [8, 6]},
        {"channels": 3},
        {"scale": 2.0},
        {"normalize": {"mean": [1.0], "std": [2.0]}},
        {"to_chw": True},
    ]
    result = apply(steps, PICTURE)
    result[...] = -1
    np.testing.assert_array_equal(PICTURE, before)


def test_resize_of_a_small_grey_picture_is_pillows_bilinear_in_float32() -> None:
    expected = np.asarray(Image.fromarray(GREY).resize((32, 32), Image.Resampling.BILINEAR))
    result = apply([{"resize": [32, 32]}], GREY)
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float32
    assert result.shape == (32, 32)


def test_resize_by_two_weights_neighbours_three_to_one() -> None:
    # Independent of Pillow: pixel centres at (i + 0.5) / 2 - 0.5 lie a quarter of the way between two pixels.
    row = np.array([[0.0, 4.0, 8.0, 4.0]] * 2, dtype=np.float32)
    result = apply([{"resize": [2, 8]}], row)
    np.testing.assert_allclose(result[0], [0, 1, 3, 5, 7, 7, 5, 4], atol=1e-6)


def test_resize_shrinks_without_aliasing() -> None:
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (8, 8))
    result = apply([{"resize": [4, 4]}], stripes)
    np.testing.assert_allclose(result[:, 1:-1], 0.5, atol=1e-6)  # sampling at points would give 0 or 1


def test_resize_treats_each_channel_alike_and_takes_height_first() -> None:
    result = apply([{"resize": [5, 9]}], PICTURE)
    assert result.shape == (5, 9, 3)
    for channel in range(3):
        np.testing.assert_array_equal(result[:, :, channel], apply([{"resize": [5, 9]}], PICTURE[:, :, channel]))


def test_channels_one_is_luminance_and_three_repeats_grey() -> None:
    grey = apply([{"channels": 1}], PICTURE)
    assert grey.shape == (8, 6, 1)
    pillow = np.asarray(Image.fromarray(PICTURE).convert("L"))
    assert np.abs(grey[:, :, 0] - pillow).max() <= 0.51  # Pillow rounds to integers
    repeated = apply([{"channels": 3}], GREY)
    assert repeated.shape == (8, 8, 3)
    np.testing.assert_array_equal(repeated[:, :, 2], GREY)
    np.testing.assert_array_equal(apply([{"channels": 3}], PICTURE), PICTURE)


def test_scale_and_normalize_compute_in_float32_on_the_channels() -> None:
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    steps = [{"scale": 1 / 255}, {"normalize": {"mean": mean, "std": std}}]
    expected = (PICTURE.astype(np.float64) / 255 - mean) / std
    last = apply([*steps, {"to_chw": True}], PICTURE)
    first = apply([steps[0], {"to_chw": True}, steps[1]], PICTURE)
    assert last.dtype == np.float32
    assert last.shape == (3, 8, 6)
    assert last.flags.c_contiguous
    np.testing.assert_array_equal(last, first)
    # float32 keeps 24 bits: three roundings of values below 3.
    np.testing.assert_allclose(last, expected.transpose(2, 0, 1), atol=1e-6)
    assert np.abs(last - (PICTURE.transpose(2, 0, 1) / 255)).max() > 1e-2  # without normalize it does not pass


def test_to_chw_gives_grey_one_channel_and_keeps_the_dtype() -> None:
    assert apply([{"to_chw": True}], GREY).shape == (1, 8, 8)
    assert apply([{"to_chw": True}], PICTURE).dtype == np.uint8


def test_one_number_normalizes_everything() -> None:
    signal = np.arange(6, dtype=np.int16)
    result = apply([{"normalize": {"mean": [1.0], "std": [2.0]}}], signal)
    np.testing.assert_array_equal(result, ((signal - 1) / 2).astype(np.float32))


@pytest.mark.parametrize(
    ("steps", "array", "message"),
    [
        ([{"rotate": 90}], PICTURE, "preprocessing step 1: unknown step 'rotate' (known: resize, channels, to_chw,"),
        ([{"scale": 1.0, "to_chw": True}], PICTURE, "a step has one key, not 2 (scale, to_chw)"),
        ([{"to_chw": True}, {"resize": [2, 2]}], PICTURE, "step 2: 'resize' stands after 'to_chw'"),
        ([{"resize": [2, 2]}], np.zeros(3), "takes a picture [height, width] or [height, width, channels]"),
        ([{"channels": 1}], np.zeros((2, 2, 4)), "cannot make 1 channels of 4"),
        ([{"normalize": {"mean": [1.0, 2.0], "std": [1.0]}}], PICTURE, "normalize.mean has 2 numbers, the array 3"),
    ],
)
def test_wrong_steps_are_refused(steps: list[dict[str, object]], array: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        apply(steps, array)
    assert message in str(caught.value)


def test_preprocessing_holds_steps_by_input_and_passes_the_others() -> None:
    preprocessing = Preprocessing({"image": [{"scale": 0.5}]})
    result = preprocessing({"image": GREY, "ids": np.arange(3)})
    np.testing.assert_array_equal(result["image"], GREY * np.float32(0.5))
    np.testing.assert_array_equal(result["ids"], np.arange(3))
    assert preprocessing.to_json() == {"image": [{"scale": 0.5}]}


def test_dtype_of_the_model_is_reached_only_without_losing_the_kind() -> None:
    assert to_dtype(GREY.astype(np.float64), "float32", "x").dtype == np.float32
    assert to_dtype(PICTURE, "float32", "x").dtype == np.float32
    with pytest.raises(UsageError, match="x: is float32 after preprocessing; the model takes int64"):
        to_dtype(GREY, "int64", "x")
