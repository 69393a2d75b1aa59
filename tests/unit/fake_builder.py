"""A `tensorrt` whose builder runs anywhere: it records what it is asked and fails as it is told."""

from __future__ import annotations

from enum import Enum
from types import SimpleNamespace
from typing import Any

GPU_BYTES = 8 << 30
FLAGS = ["REFIT", "TF32", "SPARSE_WEIGHTS", "VERSION_COMPATIBLE", "ERROR_ON_TIMING_CACHE_MISS", "STRIP_PLAN"]
FLAGS += ["REFIT_IDENTICAL", "WEIGHT_STREAMING"]
TENSOR = "{ Name: x, Dimensions: [1], Strides: [1], Datatype: Float, Format: Row major }"
TABLE = f"Name: fc_gemm, LayerType: gemm, Inputs: [ {TENSOR}], Outputs: [ {TENSOR}], Metadata: [ONNX Layer: fc]"


class Logger:
    def __init__(self) -> None:
        self.started = True


class Cache:
    def __init__(self, begun: bytes) -> None:
        self.begun = begun

    def serialize(self) -> bytes:
        return self.begun + b"+timed"


class Config:
    def __init__(self, fake: Fake) -> None:
        self.fake, self.profiles, self.flags = fake, [], {"TF32"}
        self.pool, self.cache = GPU_BYTES, None
        self.builder_optimization_level = 3
        self.level = fake.HardwareCompatibilityLevel.NONE
        fake.configs.append(self)

    @property
    def hardware_compatibility_level(self) -> Any:
        return self.level

    @hardware_compatibility_level.setter
    def hardware_compatibility_level(self, level: Any) -> None:
        if not self.fake.deaf:
            self.level = level

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def get_flag(self, flag: Any) -> bool:
        return flag.name in self.flags

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pool = size

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self.pool

    def create_timing_cache(self, begun: bytes) -> Cache:
        return Cache(begun)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not self.fake.foreign

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, usual: Any, high: Any) -> None:
        self.shapes[name] = (low, usual, high)


class Fake:
    """The module. `builds`: for each call of the builder what it logs before it fails; after them it succeeds."""

    def __init__(self, *builds: list[tuple[str, str]], version: str = "11.1.0", **traits: Any) -> None:
        self.builds, self.version = list(builds), version
        self.deaf, self.foreign = traits.get("deaf", False), traits.get("foreign", False)
        self.configs: list[Config] = []
        self.networks: list[int] = []
        self.workspaces: list[int] = []
        self.__version__ = version
        self.ILogger = Logger
        lacking = traits.get("lacking", ())
        self.BuilderFlag = Enum("BuilderFlag", [flag for flag in FLAGS if flag not in lacking])
        self.HardwareCompatibilityLevel = Enum(
            "HardwareCompatibilityLevel",
            [level for level in ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY") if level not in lacking],
        )
        self.MemoryPoolType = Enum("MemoryPoolType", ["WORKSPACE"])
        self.ProfilingVerbosity = Enum("ProfilingVerbosity", ["DETAILED"])
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.starts: str | None = traits.get("starts")

    def OnnxParser(self, network: Any, logger: Any) -> Any:  # noqa: N802
        return SimpleNamespace(parse_from_file=lambda path: True)

    def Builder(self, logger: Any) -> Any:  # noqa: N802
        if self.starts is not None:
            logger.log(SimpleNamespace(name="ERROR"), self.starts)
            raise TypeError("pybind11::init(): factory function returned nullptr")

        def serialize(network: Any, config: Config) -> bytes | None:
            self.workspaces.append(config.pool)
            lines = self.builds.pop(0) if self.builds else None
            for severity, text in lines if lines is not None else [("VERBOSE", TABLE)]:
                logger.log(SimpleNamespace(name=severity), text)
            return b"plan" if lines is None else None

        return SimpleNamespace(
            create_network=lambda flags: (
                self.networks.append(flags) or SimpleNamespace(num_inputs=1, get_input=lambda _: INPUT)
            ),
            create_builder_config=lambda: Config(self),
            create_optimization_profile=Profile,
            build_serialized_network=serialize,
        )


INPUT = SimpleNamespace(name="x", is_shape_tensor=False)
