"""Values of a builder's options as a recipe writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from optimizer.digest import sha256_file
from optimizer.errors import RecipeError
from optimizer.graph.builder_options import UNLOCK

_NAMES = ("min", "opt", "max")


def _range(value: Any) -> tuple[int, int, int]:
    """Return min, opt and max, which may be written as a list or by their names."""
    sizes = value
    if isinstance(value, Mapping):
        sizes = [value[name] for name in _NAMES] if set(value) == set(_NAMES) else []
    whole = isinstance(sizes, list | tuple) and len(sizes) == len(_NAMES) and all(type(size) is int for size in sizes)
    if not whole or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise ValueError(f"needs 1 <= min <= opt <= max, as [1, 8, 32] or {{min: 1, opt: 8, max: 32}}, got {value}")
    return sizes[0], sizes[1], sizes[2]


_SIZE = {"type": "integer", "minimum": 1}
Range = Annotated[
    tuple[int, int, int],
    BeforeValidator(_range),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": _SIZE, "minItems": 3, "maxItems": 3},
                {
                    "type": "object",
                    "properties": dict.fromkeys(_NAMES, _SIZE),
                    "required": list(_NAMES),
                    "additionalProperties": False,
                },
            ]
        }
    ),
]


class TimingCache(BaseModel):
    """What kernels took on this kind of GPU, from an earlier build."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    path: str = Field(min_length=1, description="the file; not locked, it may be absent, and is never written")
    locked: bool = Field(False, description="take every time from the file, and refuse to build where one is missing")

    @property
    def sha256(self) -> str | None:
        """The digest of the file; None without one.

        Raises: RecipeError when it is locked and there is none.
        """
        file = Path(self.path)
        if file.is_file():
            return sha256_file(file)
        if self.locked:
            raise RecipeError(f"timing_cache.path: there is no timing cache at {self.path}", hint=UNLOCK)
        return None
