"""Set a builder's options through its Python API, and read back what the library made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimizer.digest import sha256_bytes
from optimizer.errors import StageError
from optimizer.graph.builder_options import OPTIONS, TIMING_CACHE, UNLOCK, Library, honoured, is_given

_FLAGS = {option.name: option.flag for option in OPTIONS if option.flag}


@dataclass(frozen=True, slots=True)
class TimingCache:
    """The timing cache of one build: what it began with, and where its end is kept."""

    cache: Any
    locked: bool
    sha256: str | None  # of the file it began with; None: empty

    def keep(self, folder: Path) -> dict[str, Any]:
        """Write what the builder has timed beside the plan, unless it was locked, and return what engine.json says."""
        kept = None
        if not self.locked:
            timed = bytes(self.cache.serialize())
            (folder / TIMING_CACHE).write_bytes(timed)
            kept = sha256_bytes(timed)
        return {"locked": self.locked, "began_with_sha256": self.sha256, "file_sha256": kept}


def set_options(trt: Any, library: Library, config: Any, options: Mapping[str, Any]) -> TimingCache | None:
    """Set every option that was given; the profiles and compute capabilities are set elsewhere.

    Raises: StageError for an option that this release does not list or did not take.
    """
    for name, flag in _FLAGS.items():
        value = options.get(name)
        if is_given(name, value):
            member = _member(trt.BuilderFlag, f"{flag}_IDENTICAL" if value == "identical" else str(flag), name, library)
            if name == "tf32":
                config.clear_flag(member)
            else:
                config.set_flag(member)
    if "workspace" in options:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace"])
    if "builder_optimization_level" in options:
        config.builder_optimization_level = options["builder_optimization_level"]
    if "hardware_compatibility_level" in options:
        level, field = options["hardware_compatibility_level"].upper(), "hardware_compatibility_level"
        config.hardware_compatibility_level = _member(trt.HardwareCompatibilityLevel, level, field, library)
    cache = _set_timing_cache(trt, library, config, options["timing_cache"]) if "timing_cache" in options else None
    _check_taken(options, read_options(trt, library, config), library)
    return cache


def read_options(trt: Any, library: Library, config: Any) -> dict[str, Any]:
    """Return the options as the library holds them, its defaults included; only those that the package honours."""
    names = {option.name for option in honoured(library.package)}
    applied: dict[str, Any] = {"workspace": int(config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE))}
    for name, flag in _FLAGS.items():
        member = getattr(trt.BuilderFlag, str(flag), None)
        if name in names and member is not None:
            applied[name] = bool(config.get_flag(member))
    identical = getattr(trt.BuilderFlag, "REFIT_IDENTICAL", None)
    if identical is not None and config.get_flag(identical):
        applied["refit"] = "identical"
    if "builder_optimization_level" in names:
        applied["builder_optimization_level"] = int(config.builder_optimization_level)
    if "hardware_compatibility_level" in names:
        applied["hardware_compatibility_level"] = str(config.hardware_compatibility_level.name).lower()
    return applied


def _check_taken(options: Mapping[str, Any], applied: Mapping[str, Any], library: Library) -> None:
    """Refuse a library that quietly kept another value."""
    wrong = [
        f"{name} is {applied[name]!r} after it was set to {options[name]!r}"
        for name in applied
        if name in options and applied[name] != options[name]
    ]
    if wrong:
        raise StageError(
            f"{library.package} {library.version} did not take {'; '.join(wrong)}",
            hint=f"Remove it from targets.{library.package}, or use a release that takes it.",
        )


def _set_timing_cache(trt: Any, library: Library, config: Any, given: Mapping[str, Any]) -> TimingCache:
    path, locked = Path(given["path"]), bool(given["locked"])
    begun = path.read_bytes() if path.is_file() else b""
    sha256 = sha256_bytes(begun) if path.is_file() else None
    if given.get("sha256", sha256) != sha256:
        raise StageError(f"the timing cache {path.name} has changed since the build was planned", hint="Build again.")
    if locked and not begun:
        raise StageError(f"timing_cache.path: there is no timing cache at {path}", hint=UNLOCK)
    cache = config.create_timing_cache(begun)
    if cache is None or not config.set_timing_cache(cache, False):
        raise StageError(
            f"{library.package} {library.version} refuses the timing cache {path.name}: another release made it, or "
            "another kind of GPU",
            hint="Remove timing_cache, or make a new one: build without the file and with locked: false.",
        )
    if locked:
        config.set_flag(_member(trt.BuilderFlag, "ERROR_ON_TIMING_CACHE_MISS", "timing_cache.locked", library))
    return TimingCache(cache, locked, sha256)


def _member(listed: Any, name: str, option: str, library: Library) -> Any:
    member = getattr(listed, name, None)
    if member is None:
        raise StageError(
            f"{library.package} {library.version} has no {listed.__name__}.{name}, which {option} needs",
            hint=f"Remove it from targets.{library.package}, or install a later release.",
        )
    return member
