"""Build an engine with TensorRT or TensorRT-RTX from an ONNX file. Runs in a child process."""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from optimizer.errors import MissingToolError, StageError
from optimizer.graph.engine_log import layers, matters
from optimizer.graph.interface import interface
from optimizer.types import TensorSpec

Profile = Mapping[str, tuple[int, int, int]]

_OLDEST_WITHOUT_TURING = 80
_SHOWN = 20  # unsupported nodes listed by name


@dataclass(frozen=True, slots=True)
class Library:
    """How the two packages and their releases differ; the rest of this file knows no other difference."""

    package: str
    version: str
    flag_strongly_typed: bool  # TensorRT 10 builds weakly typed networks unless told; later ones know no other kind
    ahead_of_time: bool  # builds for listed compute capabilities, without a GPU

    @classmethod
    def of(cls, package: str, version: str) -> Library:
        """Return the row of the table for an installed package."""
        rtx = package == "tensorrt_rtx"
        return cls(package, version, not rtx and int(version.partition(".")[0]) < 11, rtx)


def build(
    source: str, plan: str, package: str, profile: Mapping[str, list[int]], compute_capabilities: list[str]
) -> dict[str, Any]:
    """Write the plan; return what is known of the engine: interface, capabilities, layers, warnings, time.

    Raises: StageError naming all axes without a profile, or all nodes that the parser refuses, or why nothing was
    built; MissingToolError without the package or without the GPU that it needs.
    """
    started = time.monotonic()
    model = onnx.load(source, load_external_data=False)
    inputs, outputs = interface(model)
    ranges = {axis: (sizes[0], sizes[1], sizes[2]) for axis, sizes in profile.items()}
    check_profile(inputs, ranges)
    trt = _import(package)
    library = Library.of(package, trt.__version__)
    logger = _logger(trt)
    builder = _builder(trt, library, logger)
    network = builder.create_network(_flags(trt, library))
    _parse(trt, library, network, logger, Path(source))
    config = builder.create_builder_config()
    # The log then lists every layer with its types and ONNX nodes; the kernels are the same.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    _add_profile(builder, config, network, inputs, ranges)
    chosen = _set_capabilities(trt, library, config, compute_capabilities)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise StageError(_why_not(logger.lines, library), hint=_advice(logger.lines))
    Path(plan).write_bytes(built)
    return {
        "package": package,
        "version": library.version,
        "compute_capabilities": chosen,
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": [spec.to_json() for spec in outputs],
        "layers": layers(logger.lines),
        "warnings": matters(logger.lines),
        "seconds": round(time.monotonic() - started, 3),
    }


def check_profile(inputs: tuple[TensorSpec, ...], profile: Profile) -> None:
    """Refuse dynamic axes that no profile covers, and profiles of axes that no input has.

    Raises: StageError with the line to add to the recipe.
    """
    named: dict[str, list[str]] = {}
    for spec in inputs:
        for axis in dict.fromkeys(a for a in spec.shape if isinstance(a, str)):
            named.setdefault(axis, []).append(spec.name)
    missing = {axis: users for axis, users in named.items() if axis not in profile}
    if missing:
        users = list(dict.fromkeys(name for group in missing.values() for name in group))
        plural = len(users) > 1
        lines = ", ".join(f"{axis}: {{min: 1, opt: 8, max: 32}}" for axis in missing)
        raise StageError(
            f"input{'s' * plural} {_listed(users)} {'have' if plural else 'has'} "
            f"dynamic ax{'es' if len(missing) > 1 else 'is'} {_listed(missing)} and no profile covers "
            f"{'them' if len(missing) > 1 else 'it'}.",
            hint=f"Add to the recipe:  profile: {{{lines}}}",
        )
    unknown = [axis for axis in profile if axis not in named]
    if unknown:
        raise StageError(
            f"the profile names {_listed(unknown)}, which no input has (dynamic axes: {_listed(named) or 'none'})",
            hint="Remove it from the profile, or name the axis in the recipe's inputs.",
        )


def _listed(names: Any) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise MissingToolError(
            f"{package} cannot be imported: {error}", hint=f"pip install {package.replace('_', '-')}"
        ) from error


def _logger(trt: Any) -> Any:
    """Return a logger that prints every line into the child's log and keeps it."""

    class Lines(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 refuses super()
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity.name, message))
            _write(f"[{severity.name}] {message}\n")

    return Lines()


def _write(line: str) -> None:
    import sys

    sys.stdout.write(line)
    sys.stdout.flush()


def _builder(trt: Any, library: Library, logger: Any) -> Any:
    try:
        return trt.Builder(logger)
    except TypeError as error:  # how pybind11 says that the factory returned null
        raise MissingToolError(
            f"{library.package} {library.version} cannot start its builder: {_last_error(logger.lines) or error}",
            hint="It builds on the NVIDIA GPU that will execute the engine. Without one, use the target tensorrt_rtx.",
        ) from error


def _flags(trt: Any, library: Library) -> int:
    if not library.flag_strongly_typed:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(trt: Any, library: Library, network: Any, logger: Any, source: Path) -> None:
    """Fill the network; the parser goes on after an error, so all of them are known at once."""
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(source)):
        return
    found = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = dict.fromkeys(_refused(error) for error in found)
    shown = [*lines][:_SHOWN]
    if len(lines) > _SHOWN:
        shown.append(f"and {len(lines) - _SHOWN} more, in the log")
    hint = "\n".join([*shown, "Rewrite these operators in the model, or leave this target out for it."])
    one = len(lines) == 1
    raise StageError(
        f"{library.package} {library.version} cannot parse {len(lines)} node{'' if one else 's'}:", hint=hint
    )


def _refused(error: Any) -> str:
    """Word one parser error: the node by its ONNX name, the operator, the reason."""
    operator, name = error.node_operator(), error.node_name()
    reason = " ".join(error.desc().split())
    code = error.code().name
    if code == "UNSUPPORTED_NODE" and reason in ("false", ""):
        reason = "operator not supported"
    elif "creator && " in reason:  # the parser's last resort is a plugin of that name
        reason = "operator not supported (no plugin of that name either)"
    else:
        reason = f"{reason[:200]} ({code})"
    return f"node '{name}' ({operator or 'the graph'}): {reason}"


def _add_profile(builder: Any, config: Any, network: Any, inputs: tuple[TensorSpec, ...], profile: Profile) -> None:
    """Give every dynamic input its smallest, usual and largest shape."""
    dynamic = {spec.name: spec for spec in inputs if any(isinstance(axis, str) for axis in spec.shape)}
    shapes = [network.get_input(index) for index in range(network.num_inputs)]
    values = [tensor.name for tensor in shapes if tensor.is_shape_tensor]
    if values:
        raise StageError(
            f"the values of input {_listed(values)} decide a shape; a profile here covers axes, not values",
            hint="Make that size an axis of another input, or a constant of the model.",
        )
    if not dynamic:
        return
    entry = builder.create_optimization_profile()
    for name, spec in dynamic.items():
        least, usual, most = (
            tuple(profile[axis][which] if isinstance(axis, str) else axis for axis in spec.shape) for which in range(3)
        )
        entry.set_shape(name, least, usual, most)
    if config.add_optimization_profile(entry) < 0:
        given = ", ".join(f"{axis}: {sizes}" for axis, sizes in profile.items())
        raise StageError(f"the profile is refused ({given})", hint="Allowed: min <= opt <= max for every axis.")


def _set_capabilities(trt: Any, library: Library, config: Any, wanted: list[str]) -> list[str]:
    """Set the compute capabilities of an ahead-of-time build, and return what the engine is for."""
    if not library.ahead_of_time:
        return []
    known = capabilities(trt)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        nearest = [_nearest(name, known) for name in unknown]
        raise StageError(
            f"{library.package} {library.version} builds for no compute capability {', '.join(unknown)} "
            f"(it lists {', '.join(known)})",
            hint=f"The nearest: {', '.join(dict.fromkeys(nearest))}. Write it under targets.{library.package}.",
        )
    chosen = wanted or [name for name, member in known.items() if int(member) >= _OLDEST_WITHOUT_TURING]
    config.num_compute_capabilities = len(chosen)
    for index, name in enumerate(chosen):
        config.set_compute_capability(known[name], index)
    return chosen


def _nearest(wanted: str, known: Mapping[str, Any]) -> str:
    return min(known, key=lambda name: abs(float(name) - float(wanted)))


def capabilities(trt: Any) -> dict[str, Any]:
    """Return the compute capabilities that the library lists, as "8.6", in rising order."""
    listed = {name: member for name, member in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    return {f"{name[2:-1]}.{name[-1]}": listed[name] for name in sorted(listed, key=lambda n: int(n[2:]))}


def _last_error(lines: list[tuple[str, str]]) -> str:
    errors = [" ".join(text.split()) for severity, text in lines if severity in ("ERROR", "INTERNAL_ERROR")]
    return errors[-1][:400] if errors else ""


def _why_not(lines: list[tuple[str, str]], library: Library) -> str:
    errors = [" ".join(text.split()) for severity, text in lines if severity in ("ERROR", "INTERNAL_ERROR")]
    # On a machine without a GPU the library also complains of the missing driver; that is never the cause.
    causes = [text for text in errors if "cudaError 35" not in text] or errors
    said = causes[0][:500] if causes else "it logged no reason"
    return f"{library.package} {library.version} built no engine: {said}"


def _advice(lines: list[tuple[str, str]]) -> str:
    text = _last_error(lines) + " ".join(text for severity, text in lines if severity == "ERROR")
    if "Turing" in text or "SM75" in text:
        return "Compute capability 7.5 (Turing) takes FP16 only: leave it out of compute_capabilities, or build FP16."
    if "memory" in text.lower():
        return "Free memory on the GPU, or lower the profile's max."
    return "The log holds every step of the build."
