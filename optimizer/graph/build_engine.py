"""Build an engine with TensorRT or TensorRT-RTX from an ONNX file. Runs in a child process."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from optimizer.errors import MissingToolError, StageError
from optimizer.graph.build_failure import failure, no_builder, shortage
from optimizer.graph.builder_config import read_options, set_options
from optimizer.graph.builder_options import Library, capability_advice, option_problems, options_of_a_gpu
from optimizer.graph.engine_log import matters, table
from optimizer.graph.engine_tables import tables
from optimizer.graph.interface import interface
from optimizer.graph.optimization_profiles import add_profiles, check_profile, complete, named
from optimizer.graph.parser_errors import build_failure, parse_failure
from optimizer.runtime import cuda
from optimizer.runtime.engine_interface import register_plugins

_OLDEST_WITHOUT_TURING = 80
# A build for it that failed leaves this target behind for the next one in the process (TensorRT-RTX 1.7, measured).
_REMEMBERS = "7.5"


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One call of the builder, or two: the plan, the workspace it was made with, and why there was a second."""

    plan: Any
    workspace: int
    retry: dict[str, Any] | None


def build(
    source: str,
    plan: str,
    package: str,
    profile: Mapping[str, list[int]],
    compute_capabilities: list[str],
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the plan; return what is known of the engine: interface, capabilities, options, layers, warnings, time.

    `options` holds those of `builder_options.OPTIONS` that were given. A timing cache is written beside the plan.
    Raises: StageError naming all axes without a profile, all options that cannot be honoured, all nodes that the
    parser refuses, or why nothing was built; MissingToolError without the package or without the GPU that it needs.
    """
    started = time.monotonic()
    given = dict(options or {})
    inputs, outputs = interface(onnx.load(source, load_external_data=False))
    ranges = {axis: (sizes[0], sizes[1], sizes[2]) for axis, sizes in profile.items()}
    check_profile(inputs, ranges)
    _check_options(package, {**given, "compute_capabilities": compute_capabilities}, ranges)
    trt = _import(package)
    register_plugins(trt, package)
    library = Library.of(package, trt.__version__)
    logger = _logger(trt)
    builder = _builder(trt, library, logger)
    network = builder.create_network(_flags(trt, library))
    _parse(trt, library, network, logger, Path(source))
    config = builder.create_builder_config()
    # The log then lists every layer with its types and ONNX nodes; the kernels are the same.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profiles = complete(given.get("profiles", ()), ranges)
    add_profiles(builder, config, network, inputs, profiles)
    chosen = _set_capabilities(trt, library, config, compute_capabilities)
    cache = set_options(trt, library, config, given)
    applied = read_options(trt, library, config)
    sure = _REMEMBERS not in chosen
    made = _built(lambda: _serialize(trt, library, (builder, network, config), logger, given, sure), Path(source))
    Path(plan).write_bytes(made.plan)
    rows = table(logger.lines)
    warnings = matters(logger.lines)
    per = {chosen[0]: rows} if chosen else {}
    for name in chosen[1:]:
        _only(trt, config, name)
        per |= tables(builder, network, {name: config}, logger.lines)
    return {
        "package": package,
        "version": library.version,
        "compute_capabilities": chosen,
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": [spec.to_json() for spec in outputs],
        "profiles": [named(entry) for entry in profiles],
        "options": {**applied, "workspace": made.workspace},
        "retry": made.retry,
        "timing_cache": cache.keep(Path(plan).parent) if cache else None,
        "layers": rows,
        "tables": per,
        "warnings": warnings,
        "seconds": round(time.monotonic() - started, 3),
    }


def _check_options(package: str, options: Mapping[str, Any], profile: Mapping[str, tuple[int, int, int]]) -> None:
    """Refuse options that this package, or this machine, cannot honour: all of them at once.

    Raises: StageError.
    """
    found = [f"{'.'.join(map(str, path))}: {text}" for path, text in option_problems(package, options, profile)]
    bound = [] if found else options_of_a_gpu(package, options)
    no_gpu = cuda.missing() if bound else None
    if no_gpu:
        found = [f"{', '.join(bound)}: {package} builds that beside a GPU alone: {no_gpu}. Build there, or remove it"]
    if found:
        raise StageError(f"targets.{package}.{found[0]}", hint="\n".join(f"targets.{package}.{t}" for t in found[1:]))


def _serialize(
    trt: Any,
    library: Library,
    what: tuple[Any, Any, Any],
    logger: Any,
    given: Mapping[str, Any],
    may_retry: bool,
) -> _Attempt:
    """Build; where a tactic ran out of memory, build once more with half the workspace, if that may be.

    Raises: the OptimizerError that says why there is no engine.
    """
    builder, network, config = what
    pool = trt.MemoryPoolType.WORKSPACE
    first = int(config.get_memory_pool_limit(pool))
    begun = len(logger.lines)
    built = builder.build_serialized_network(network, config)
    if built is not None:
        return _Attempt(built, first, None)
    found = shortage(logger.lines)
    if found is None or not may_retry:
        raise failure(logger.lines, library, first, given)
    _write(f"[OPTIMIZER] {found.sentence}: once more with half the workspace, {first // 2} bytes\n")
    mark = len(logger.lines)
    config.set_memory_pool_limit(pool, first // 2)
    built = builder.build_serialized_network(network, config)
    if built is None:
        again = failure(logger.lines[mark:], library, first // 2, given)
        before = f"first it {found.sentence} at a workspace of {first} bytes; with half of it"
        raise type(again)(f"{before} {again.what}", hint=again.hint)
    del logger.lines[begun:mark]  # the table of layers is that of the engine that was built
    return _Attempt(built, first // 2, {"reason": found.sentence, "workspace": [first, first // 2]})


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
        raise no_builder(logger.lines, library, error) from error


def _flags(trt: Any, library: Library) -> int:
    if not library.flag_strongly_typed:
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _parse(trt: Any, library: Library, network: Any, logger: Any, source: Path) -> None:
    """Fill the network. Raises: StageError naming all nodes that the parser refuses."""
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(source)):
        raise parse_failure(parser, library.package, library.version, source)


def _built(attempt: Callable[[], _Attempt], source: Path) -> _Attempt:
    """Build; an error that names fused layers gains their ONNX nodes and modules."""
    try:
        return attempt()
    except StageError as error:
        told = build_failure(error.what, source)
        raise StageError(error.what, where=error.where, hint="\n".join([*told, error.hint or ""]).strip()) from error


def _set_capabilities(trt: Any, library: Library, config: Any, wanted: list[str]) -> list[str]:
    """Set the compute capabilities of an ahead-of-time build, and return what the engine is for."""
    if not library.ahead_of_time:
        return []
    known = capabilities(trt)
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise StageError(
            f"{library.package} {library.version} builds for no compute capability {', '.join(unknown)} "
            f"(it lists {', '.join(known)})",
            hint=capability_advice(unknown, known),
        )
    chosen = wanted or [name for name, member in known.items() if int(member) >= _OLDEST_WITHOUT_TURING]
    config.num_compute_capabilities = len(chosen)
    for index, name in enumerate(chosen):
        config.set_compute_capability(known[name], index)
    return chosen


def _only(trt: Any, config: Any, capability: str) -> None:
    """Let the configuration build for one compute capability."""
    config.num_compute_capabilities = 1
    config.set_compute_capability(capabilities(trt)[capability], 0)


def capabilities(trt: Any) -> dict[str, Any]:
    """Return the compute capabilities that the library lists, as "8.6", in rising order."""
    listed = {name: member for name, member in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    return {f"{name[2:-1]}.{name[-1]}": listed[name] for name in sorted(listed, key=lambda n: int(n[2:]))}
