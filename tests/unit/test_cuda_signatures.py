"""The table of argument types against the prototypes of cuda.h, where a CUDA toolkit is installed."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import pytest

from optimizer.runtime.cuda import SIGNATURES

# What a parameter's C type is called in cuda.h, and the ctypes that pass it.
KINDS: dict[str, tuple[object, ...]] = {
    "CUdeviceptr": (ctypes.c_uint64,),
    "size_t": (ctypes.c_size_t,),
    "unsigned int": (ctypes.c_uint,),
    "unsigned char": (ctypes.c_ubyte,),
    "unsigned long long": (ctypes.c_ulonglong,),
    "int": (ctypes.c_int,),
    "CUdevice": (ctypes.c_int,),
    "CUresult": (ctypes.c_int,),
    "CUdevice_attribute": (ctypes.c_int,),
    "CUstreamCaptureMode": (ctypes.c_int,),
    "void *": (ctypes.c_void_p,),
    "CUcontext": (ctypes.c_void_p,),
    "CUstream": (ctypes.c_void_p,),
    "CUgraph": (ctypes.c_void_p,),
    "CUgraphExec": (ctypes.c_void_p,),
    "CUgraphNode": (ctypes.c_void_p,),
    "char *": (ctypes.c_char_p,),
}


def header() -> str:
    roots = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")), *Path("/usr/local").glob("cuda-*")]
    for root in roots:
        if (root / "include" / "cuda.h").is_file():
            return (root / "include" / "cuda.h").read_text(errors="replace")
    pytest.skip("needs the CUDA toolkit's cuda.h (CUDA_HOME)")


def prototype(text: str, function: str) -> list[str]:
    """Return the C types of the parameters; a name with a version is behind the macro of the name without."""
    plain = re.sub(r"_v\d+$", "", function)
    shadowed = re.search(rf"#define {plain} +(?:__CUDA_API_PT[SD]Z\()?(\w+)", text)
    names = [function, plain]
    if shadowed is None and function != plain:
        raise AssertionError(f"cuda.h has no macro {plain}")
    if shadowed is not None:
        assert function in (shadowed.group(1), plain), f"{plain} is {shadowed.group(1)} in this cuda.h"
    if function == "cuGraphInstantiateWithFlags":
        names = ["cuGraphInstantiate"]  # the macro of CUDA 12 and later
    for name in names:
        found = re.search(rf"^CUresult CUDAAPI {name}\(([^)]*)\);", text, re.MULTILINE)
        if found:
            return [_type(parameter) for parameter in found.group(1).split(",")]
    raise AssertionError(f"cuda.h declares no {function}")


def _type(parameter: str) -> str:
    words = parameter.replace("const ", "").strip()
    without_name = re.sub(r"\w+$", "", words).strip()
    return re.sub(r"\s*\*", " *", without_name)


def passes(kind: object, c_type: str) -> bool:
    if c_type in KINDS:
        return kind in KINDS[c_type]
    pointed = c_type.removesuffix("*").strip()
    return any(kind is ctypes.POINTER(inner) for inner in KINDS.get(pointed, ()))  # type: ignore[arg-type]


@pytest.mark.parametrize("function", sorted(SIGNATURES))
def test_argument_types_are_those_of_the_header(function: str) -> None:
    wanted = prototype(header(), function)
    given = SIGNATURES[function]
    assert len(given) == len(wanted), f"{function}({', '.join(wanted)})"
    for kind, c_type in zip(given, wanted, strict=True):
        assert passes(kind, c_type), f"{function}: {kind} for {c_type}"


def test_wrong_type_is_seen() -> None:
    assert not passes(ctypes.c_int, "size_t")
    assert not passes(ctypes.POINTER(ctypes.c_int), "CUgraph *")
    assert not passes(ctypes.c_void_p, "CUdeviceptr")
