"""From a picture (or any array) to a model's input. Training, evaluation and serving run this same code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from optimizer.errors import MissingToolError, UsageError
from optimizer.runtime.session import Array

# Luminance of ITU-R BT.601, as Pillow's mode L, without its rounding to integers.
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def apply(steps: Sequence[Mapping[str, Any]], array: Array) -> Array:
    """Run one sample through `steps`, each a mapping with one key: resize, channels, scale, normalize or to_chw.

    Shapes: [height, width] or [height, width, channels], before `to_chw`; scale and normalize take any shape.
    Numeric: resize, luminance, scale and normalize compute in float32 and return it; to_chw and repeated grey keep
    the dtype. Nothing is rounded to integers on the way. The array given is never changed.
    Raises: UsageError for an unknown step, or an array that a step cannot take; MissingToolError without Pillow.
    """
    channels_first = False
    for position, step in enumerate(steps):
        where = f"preprocessing step {position + 1}"
        name, value = _only(step, where)
        if name in ("resize", "channels", "to_chw"):
            if channels_first:
                raise UsageError(f"'{name}' stands after 'to_chw'", where=where, hint="put 'to_chw' last")
            array = _PICTURE[name](array, value, where)
            channels_first = name == "to_chw"
        elif name == "scale":
            array = array.astype(np.float32) * np.float32(value)
        else:
            array = _normalize(array, value, 0 if channels_first else -1, where)
    return np.ascontiguousarray(array) if array.ndim else array


def to_dtype(array: Array, dtype: str, where: str) -> Array:
    """Return a sample in the dtype of the model's input, as NumPy's `same_kind` rule allows: never a float to integers.

    Raises: UsageError otherwise.
    """
    if array.dtype.name == dtype:
        return array
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise UsageError(f"is {array.dtype.name} after preprocessing; the model takes {dtype}", where=where)
    converted: Array = array.astype(dtype)
    return converted


class Preprocessing:
    """The steps of each input, as `preprocessing.json` holds them; an input without steps passes as it is."""

    def __init__(self, steps: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self.steps = {name: tuple(dict(step) for step in each) for name, each in steps.items()}

    def __call__(self, sample: Mapping[str, Array]) -> dict[str, Array]:
        """Preprocess one sample, given by input name and without a batch axis."""
        return {name: apply(self.steps.get(name, ()), array) for name, array in sample.items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {name: [dict(step) for step in each] for name, each in self.steps.items()}


def _only(step: Mapping[str, Any], where: str) -> tuple[str, Any]:
    """Return the one key of a step and its value."""
    if len(step) != 1:
        raise UsageError(f"a step has one key, not {len(step)} ({', '.join(step)})", where=where)
    name, value = next(iter(step.items()))
    if name not in _KNOWN:
        raise UsageError(f"unknown step '{name}' (known: {', '.join(_KNOWN)})", where=where)
    return name, value


def _resize(array: Array, size: Sequence[int], where: str) -> Array:
    """Resize to [height, width], each channel by itself in float32.

    Numeric: Pillow's BILINEAR in mode F, without reducing_gap: when shrinking the triangle filter is as wide as the
    scale, so it does not alias; this differs from interpolation at points, as in OpenCV's INTER_LINEAR.
    """
    height, width = _picture(array, where).shape[:2]
    if (height, width) == tuple(size):
        return array.astype(np.float32)
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingToolError("resizing needs Pillow, which is not installed", hint="pip install Pillow") from error

    def plane(values: Array) -> Array:
        picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
        resized: Array = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, reducing_gap=None))
        return resized

    if array.ndim == 2:
        return plane(array)
    return np.stack([plane(array[:, :, channel]) for channel in range(array.shape[2])], axis=2)


def _channels(array: Array, count: int, where: str) -> Array:
    """Give a picture one channel (luminance) or three (grey repeated); the result has three axes."""
    picture = _picture(array, where)
    if picture.ndim == 2:
        picture = picture[:, :, np.newaxis]
    given = picture.shape[2]
    if given == count:
        return picture
    if given == 3 and count == 1:
        red, green, blue = np.moveaxis(picture.astype(np.float32), 2, 0)
        # A plain sum, not a matrix product: the same bits on every machine.
        grey: Array = red * _LUMINANCE[0] + green * _LUMINANCE[1] + blue * _LUMINANCE[2]
        return grey[:, :, np.newaxis]
    if given == 1 and count == 3:
        return np.repeat(picture, 3, axis=2)
    raise UsageError(f"cannot make {count} channels of {given} (1 and 3 are known)", where=where)


def _to_chw(array: Array, _: bool, where: str) -> Array:
    """Move the channels first; a picture without that axis gets one of size 1."""
    picture = _picture(array, where)
    return picture[np.newaxis] if picture.ndim == 2 else picture.transpose(2, 0, 1)


def _normalize(array: Array, value: Mapping[str, Sequence[float]], axis: int, where: str) -> Array:
    """Subtract the mean and divide by the standard deviation: one number for all, or one per channel."""
    mean, std = (np.asarray(value[key], dtype=np.float32) for key in ("mean", "std"))
    for key, numbers in (("mean", mean), ("std", std)):
        if numbers.size != 1 and (array.ndim == 0 or numbers.size != array.shape[axis]):
            channels = array.shape[axis] if array.ndim else "no"
            raise UsageError(
                f"normalize.{key} has {numbers.size} numbers, the array {channels} channels {list(array.shape)}",
                where=where,
            )
    if axis == 0:
        mean, std = (numbers.reshape(-1, *[1] * (array.ndim - 1)) for numbers in (mean, std))
    return (array.astype(np.float32) - mean) / std


def _picture(array: Array, where: str) -> Array:
    if array.ndim not in (2, 3):
        raise UsageError(
            f"takes a picture [height, width] or [height, width, channels], not an array {list(array.shape)}",
            where=where,
        )
    return array


_PICTURE: Mapping[str, Callable[[Array, Any, str], Array]] = {
    "resize": _resize,
    "channels": _channels,
    "to_chw": _to_chw,
}
_KNOWN = (*_PICTURE, "scale", "normalize")
