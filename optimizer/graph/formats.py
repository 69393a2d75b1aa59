"""The narrow floating-point formats that a graph may be cast to, and what they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper


@dataclass(frozen=True, slots=True)
class NarrowFormat:
    """A 16-bit format beside float32. `flushes`: round to nearest even makes this and everything smaller zero."""

    name: str
    element_type: int
    bits: int  # of the significand, the hidden one included
    largest: float
    smallest_normal: float
    flushes: float
    most_terms: int  # of a sum whose accumulator may be as narrow: they lose at most 3 % and rarely leave the range

    @property
    def exact_integers(self) -> int:
        """Up to here every whole number is held exactly."""
        return 1 << self.bits

    @property
    def has_range_of_float32(self) -> bool:
        """Whether what float32 holds neither overflows nor vanishes."""
        return self.smallest_normal <= float(np.finfo(np.float32).smallest_normal)

    @property
    def tensor_type(self) -> str:
        """What operator schemas call it."""
        return f"tensor({self.name})"

    def tensor(self, values: npt.NDArray[np.floating], name: str = "") -> onnx.TensorProto:
        """Return the values rounded to nearest even."""
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.element_type)
        return numpy_helper.from_array(np.asarray(values).astype(dtype), name)


# 64 float16 additions lose at most 64 * 2^-11 = 3 %, and overflow only where the mean magnitude passes 1023.
FLOAT16 = NarrowFormat("float16", onnx.TensorProto.FLOAT16, 11, 65504.0, 2.0**-14, 2.0**-25, 64)
# 8 bfloat16 additions lose at most 8 * 2^-8 = 3 %.
BFLOAT16 = NarrowFormat("bfloat16", onnx.TensorProto.BFLOAT16, 8, (2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-134, 8)
FORMATS = (FLOAT16, BFLOAT16)
