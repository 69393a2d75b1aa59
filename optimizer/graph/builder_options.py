"""Which package honours which option of its builder, and what each needs: one table, for the recipe and the build."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optimizer.graph.optimization_profiles import Ranges, profile_problems

TIMING_CACHE = "timing.cache"  # what a build has timed, beside its plan
UNLOCK = f"Build once with locked: false, copy {TIMING_CACHE} from the engine's folder to this path, and lock it then."
Path = tuple[str | int, ...]  # keys below the target's section of the recipe


@dataclass(frozen=True, slots=True)
class Library:
    """How the two packages and their releases differ where no option is concerned."""

    package: str
    version: str
    flag_strongly_typed: bool  # TensorRT 10 builds weakly typed networks unless told; later ones know no other kind
    ahead_of_time: bool  # builds for listed compute capabilities, without a GPU
    tool: str  # its command line

    @classmethod
    def of(cls, package: str, version: str) -> Library:
        """Return the row of the table for an installed package."""
        rtx = package == "tensorrt_rtx"
        ten = not rtx and int(version.partition(".")[0]) < 11
        return cls(package, version, ten, rtx, "tensorrt_rtx" if rtx else "trtexec")


@dataclass(frozen=True, slots=True)
class Option:
    """One option: the flag of `BuilderFlag` behind it, and what TensorRT-RTX makes of it.

    TensorRT honours all of them, on the GPU that it cannot do without; what a release of it does not list is found
    when the option is set.
    """

    name: str
    flag: str | None = None
    rtx_refuses: str | None = None  # why, in half a sentence
    rtx_needs_gpu: bool = False  # and then builds for one compute capability


# Measured with TensorRT-RTX 1.7.1 on a machine without a GPU. Source for TensorRT: IBuilderConfig and BuilderFlag of
# its Python API, 10.x and 11.x.
OPTIONS = (
    Option("profiles"),
    Option("workspace"),
    Option("tf32", flag="TF32"),
    Option("weight_streaming", flag="WEIGHT_STREAMING"),
    Option("strip_plan", flag="STRIP_PLAN", rtx_needs_gpu=True),
    Option("refit", flag="REFIT", rtx_needs_gpu=True),
    Option(
        "builder_optimization_level",
        rtx_refuses="its plan is the same, byte for byte, at levels 0 to 5: it chooses kernels when the engine loads",
    ),
    Option(
        "sparse_weights",
        flag="SPARSE_WEIGHTS",
        rtx_refuses="its plan is the same, byte for byte, with and without it, even for weights of the 2:4 pattern",
    ),
    Option("timing_cache", rtx_refuses="it times nothing, and its timing cache does nothing since 1.2"),
    Option(
        "hardware_compatibility_level",
        rtx_refuses="its builder ignores the level; one engine holds every capability in compute_capabilities",
    ),
    Option(
        "version_compatible",
        flag="VERSION_COMPATIBLE",
        rtx_refuses="its package lacks the lean runtime library that such a plan contains",
    ),
)
# GPUs that TensorRT-RTX does not serve: it lists the capabilities of GeForce and RTX cards, and of the A100.
DATA_CENTRE = {"9.0": "H100, H200", "10.0": "B200", "10.3": "B300"}
_OLDEST = 7.5
CURRENT = "current"  # ComputeCapability.CURRENT: the GPU here, written out as its number before anything is keyed


def honoured(package: str) -> tuple[Option, ...]:
    """Return the options that a package takes."""
    return tuple(option for option in OPTIONS if package != "tensorrt_rtx" or option.rtx_refuses is None)


def option_problems(package: str, options: Mapping[str, Any], profile: Ranges) -> list[tuple[Path, str]]:
    """Return what is wrong with a target's options whatever the machine: where it stands, and a sentence.

    `options` holds those that were written, and `profile` the recipe's ranges (axis -> min, opt, max).
    """
    given = {name: value for name, value in options.items() if is_given(name, value)}
    problems: list[tuple[Path, str]] = []
    for option in OPTIONS:
        if option.name in given and package == "tensorrt_rtx" and option.rtx_refuses:
            problems.append(((option.name,), f"tensorrt_rtx does not honour it: {option.rtx_refuses}. {_ELSEWHERE}"))
    problems += _contradictions(package, given)
    problems += [
        (("compute_capabilities", i), text) for i, text in capability_problems(given.get("compute_capabilities", ()))
    ]
    problems += [(("profiles", *path), text) for path, text in profile_problems(given.get("profiles", ()), profile)]
    return problems


_ELSEWHERE = "Remove it, or write it under targets.tensorrt, which does"


def is_given(name: str, value: Any) -> bool:
    """Return whether an option asks for something else than the library's default."""
    if name == "tf32":
        return value is False
    return value is not None and value is not False and value not in ("none", (), [])  # level 0 is a request


def _contradictions(package: str, given: Mapping[str, Any]) -> list[tuple[Path, str]]:
    """Return options that exclude each other."""
    found: list[tuple[Path, str]] = []
    if given.get("builder_optimization_level") == 0 and "timing_cache" in given:
        text = "level 0 takes the first kernel that works and reads no timing cache: write 1 to 5, or remove the cache"
        found.append((("builder_optimization_level",), text))
    listed = given.get("compute_capabilities", ())
    if package == "tensorrt_rtx" and len(set(listed)) != 1:
        count = f"{len(set(listed))} are listed" if listed else "the default is all from 8.0 on"
        for option in OPTIONS:
            if option.rtx_needs_gpu and option.name in given:
                text = f"tensorrt_rtx builds it for one compute capability, and {count}: list the one of the GPU"
                found.append(((option.name,), text))
    return found


def capability_problems(listed: Iterable[str]) -> list[tuple[int, str]]:
    """Return the compute capabilities that no release of TensorRT-RTX serves: the position, and a sentence."""
    found = []
    names = list(listed)
    for index, name in enumerate(names):
        if name == CURRENT:
            if len(set(names)) > 1:  # as the library has it
                found.append((index, f"{CURRENT} is the GPU here and stands alone: remove it, or the others"))
        elif name in DATA_CENTRE:
            found.append((index, f"tensorrt_rtx builds for no {name} ({DATA_CENTRE[name]}): {_ON_THE_GPU}"))
        elif float(name) < _OLDEST:
            found.append((index, f"tensorrt_rtx builds for no {name}: the oldest is {_OLDEST} (Turing)"))
    return found


_ON_THE_GPU = "use the target tensorrt, which builds for such a GPU on the GPU itself"


def without_gpu(absent: str) -> str:
    """Return what to do with the target tensorrt on a machine without a GPU; `absent` says what it lacks."""
    lacks = absent.partition(" (")[0]  # what the driver's loader says helps nobody here
    return (
        f"tensorrt builds an engine beside the GPU that will execute it: it {lacks}.\n"
        "Without one, write tensorrt_rtx under targets in its place: its engines build here, for listed GPUs,\n"
        "and  optimize measure RUN --device cuda:0  measures them on a GPU host."
    )


def capability_advice(unknown: Iterable[str], known: Iterable[str]) -> str:
    """Return what to write instead of capabilities that the installed TensorRT-RTX does not list."""
    names = list(unknown)
    served = [name for name in names if name in DATA_CENTRE]
    near = dict.fromkeys(
        min(known, key=lambda k: abs(float(k) - float(name))) for name in names if name not in DATA_CENTRE
    )
    lines = [f"For {', '.join(served)} ({'; '.join(DATA_CENTRE[n] for n in served)}) {_ON_THE_GPU}."] if served else []
    if near:
        lines.append(f"The nearest: {', '.join(near)}. Write it under targets.tensorrt_rtx.")
    return "\n".join(lines)


def options_of_a_gpu(package: str, options: Mapping[str, Any]) -> list[str]:
    """Return the given options that a package builds only on a machine with a GPU, by name.

    None for tensorrt: without a GPU it does not even start its builder.
    """
    return [
        option.name
        for option in OPTIONS
        if package == "tensorrt_rtx" and option.rtx_needs_gpu and is_given(option.name, options.get(option.name))
    ]
