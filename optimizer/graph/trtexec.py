"""The command line that builds the same engine with the library's own tool: a pure function of engine.json."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.graph.builder_options import Library

# Source: samples/common/sampleOptions.cpp of TensorRT 10 (public); "Best Practices" and "CPU-Only AOT" of the
# documentation of TensorRT-RTX, whose tool `tensorrt_rtx` shares these names.
_SWITCHES = {
    "version_compatible": "--versionCompatible",
    "weight_streaming": "--allowWeightStreaming",
    "strip_plan": "--stripWeights",
    "sparse_weights": "--sparsity=enable",
}
_LEVELS = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


def trtexec(receipt: Mapping[str, Any], onnx: str = "model.onnx", plan: str = "engine.plan") -> str:
    """Return the line, quoted for a shell. `receipt` is engine.json; a comment ends it where the tool lacks an option.

    After a second attempt the line has the workspace of that one.
    """
    library = Library.of(receipt["package"], receipt["version"])
    given: Mapping[str, Any] = receipt["options_given"]
    words = [library.tool, f"--onnx={onnx}", f"--saveEngine={plan}"]
    words += _shapes(receipt["inputs"], receipt["profiles"])
    if library.flag_strongly_typed:
        words.append("--stronglyTyped")
    if receipt["compute_capabilities"]:
        listed = ",".join(name.replace(".", "") for name in receipt["compute_capabilities"])
        words.append(f"--computeCapabilities={listed}")
    if "workspace" in given or receipt["retry"]:
        words.append(f"--memPoolSize=workspace:{receipt['options']['workspace']}B")
    if "builder_optimization_level" in given:
        words.append(f"--builderOptimizationLevel={given['builder_optimization_level']}")
    if "timing_cache" in given:
        words.append(f"--timingCacheFile={given['timing_cache']['path']}")
        words += ["--errorOnTimingCacheMiss"] if given["timing_cache"]["locked"] else []
    if "hardware_compatibility_level" in given:
        words.append(f"--hardwareCompatibilityLevel={_LEVELS[given['hardware_compatibility_level']]}")
    words += [switch for name, switch in _SWITCHES.items() if name in given]
    if given.get("refit") is True:
        words.append("--refit")
    if "tf32" in given:
        words.append("--noTF32")
    line = shlex.join([*words, "--profilingVerbosity=detailed", "--skipInference"])
    # --stripWeights alone refits with identical weights; without it the tool has no word for that.
    unsaid = given.get("refit") == "identical" and "strip_plan" not in given
    return f"{line}  # refit: identical has no option there" if unsaid else line


def _shapes(inputs: Sequence[Mapping[str, Any]], profiles: Sequence[Mapping[str, Mapping[str, int]]]) -> list[str]:
    """Return the shapes of every dynamic input in every profile; those of one profile need no number."""
    dynamic = [spec for spec in inputs if any(isinstance(size, str) for size in spec["shape"])]
    words: list[str] = []
    for index, profile in enumerate(profiles if dynamic else ()):
        words += [f"--profile={index}"] if len(profiles) > 1 else []
        for which in ("min", "opt", "max"):
            shapes = ",".join(f"{_name(spec['name'])}:{_shape(spec['shape'], profile, which)}" for spec in dynamic)
            words.append(f"--{which}Shapes={shapes}")
    return words


def _name(name: str) -> str:
    return f"'{name}'" if ":" in name else name


def _shape(shape: Sequence[int | str], profile: Mapping[str, Mapping[str, int]], which: str) -> str:
    return "x".join(str(profile[size][which] if isinstance(size, str) else size) for size in shape)
