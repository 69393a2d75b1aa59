"""The recipe as data: frozen and strict. It says what, never how; `steps.py` derives the stages from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
DType = Literal["float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool"]


class Section(BaseModel):
    """A mapping of the recipe: no unknown keys, no conversions, never changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _finite(value: Any) -> Any:
    """Refuse infinity and NaN at any depth: no key could hold them."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(item)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"needs finite numbers, got {value}")
    return value


Arguments = Annotated[dict[str, Any], AfterValidator(_finite)]


class ModelSource(Section):
    """Where the model comes from: a checkpoint and the factory of its module, a `.pt2`, or an `.onnx`."""

    checkpoint: str = Field(description="state_dict (.pt, .pth, .th, .safetensors), exported program (.pt2) or .onnx")
    factory: str | None = Field(None, description="FILE.py:FUNCTION, a callable that returns the nn.Module")
    arguments: Arguments = Field(default_factory=dict, description="keyword arguments of the factory")
    files: tuple[str, ...] = Field((), description="further files that the factory reads")
    key: str | None = Field(None, description="dotted path of the state_dict inside the checkpoint")
    strip_prefix: str | None = Field(None, description="prefix to remove from every key, e.g. 'module.'")
    outputs: tuple[str, ...] = Field(min_length=1, description="names of the outputs, in order")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="refuse a checkpoint with another sha256")
    trust: bool = Field(False, description="allow the checkpoint to run code while it loads")


class InputSpec(Section):
    """An input of forward(); a word in `shape` names a dynamic axis."""

    dtype: DType = Field(description="numpy's name, e.g. float32")
    shape: tuple[Annotated[int, Field(ge=1)] | str, ...] = Field(
        description="sizes, and a word for each dynamic axis: [batch, 3, 32, 32]"
    )
    keyword: bool = Field(False, description="passed by name instead of by position")


class ShapeRange(Section):
    """Smallest, usual and largest size of a dynamic axis."""

    min: PositiveInt = Field(description="the smallest size")
    opt: PositiveInt = Field(description="the usual size, which an engine is tuned for")
    max: PositiveInt = Field(description="the largest size")

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"needs min <= opt <= max, got {self.min}, {self.opt}, {self.max}")
        return self


class Normalize(Section):
    """Subtract `mean`, divide by `std`: one number, or one a channel: the last axis, after `to_chw` the first."""

    mean: tuple[float, ...]
    std: tuple[PositiveFloat, ...]

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one of each a channel")
        return self


class TransformStep(Section):
    """One step of preprocessing; exactly one key is given."""

    resize: tuple[PositiveInt, PositiveInt] | None = Field(None, description="[height, width], bilinear")
    channels: Literal[1, 3] | None = Field(None, description="1: luminance; 3: grey repeated three times")
    scale: float | None = Field(None, description="multiply, as float32")
    normalize: Normalize | None = None
    to_chw: Literal[True] | None = Field(None, description="height, width, channels -> channels, height, width")

    @model_validator(mode="after")
    def _is_one_step(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one key, got {', '.join(given) or 'none'}")
        return self


def _several(count: int) -> int:
    if count < 2:
        raise ValueError(
            f"needs at least 2, got {count}: one sample says nothing of others' ranges; 128 to 512 are usual"
        )
    return count


class CalibrationData(Section):
    """Which samples calibrate."""

    split: str = Field(description="the name of a split, as the source knows it")
    samples: Annotated[PositiveInt, AfterValidator(_several)] = Field(512, json_schema_extra={"minimum": 2})
    seed: int = 0
    synthetic: bool = Field(False, description="they are random numbers, and meant to be: the model sees noise in use")


class EvaluationData(Section):
    """Which samples judge accuracy; all of the split unless `samples` says fewer."""

    split: str = Field(description="the name of a split, as the source knows it")
    samples: PositiveInt | None = None
    seed: int = 0
    batch: PositiveInt | None = Field(None, description="default: the profile's opt, or 32")


class Data(Section):
    """Real data: a callable `FILE.py:FUNCTION(split)` or a folder (or .zip) of pictures, one folder a class."""

    source: str | None = Field(None, description="FILE.py:FUNCTION; called with the split's name and `arguments`")
    arguments: Arguments = Field(default_factory=dict)
    files: tuple[str, ...] = Field((), description="files that the callable reads; their content is part of the key")
    folder: str | None = Field(None, description="a folder or .zip of pictures")
    layout: str | None = Field(None, description="path of a class's pictures in it, e.g. '<split>/<class>'")
    transform: tuple[TransformStep, ...] = ()
    labels: tuple[str, ...] | None = Field(None, description="class names by index")
    calibration: CalibrationData | None = None
    evaluation: EvaluationData = Field(description="{split: NAME}, the samples that judge accuracy")


class MetricOptions(Section):
    """How a metric is read."""

    output: str | None = Field(None, description="the output it reads; default: the first")


class LoadGen(Section):
    """What MLPerf LoadGen is asked for; the two targets are the server's."""

    target_latency_ms: PositiveFloat | None = Field(None, description="server: p99 that must hold")
    target_qps: PositiveFloat | None = Field(None, description="server: queries per second, at random moments")
    seconds: PositiveFloat = Field(10.0, description="least duration; MLPerf itself asks for 600")
    queries: PositiveInt = Field(100, description="least number of queries")
    batch: PositiveInt = Field(1, description="samples of one call: offline, and at most in the server")
    workers: PositiveInt = Field(1, description="runners open at once, each in a thread of its own")
    seed: Annotated[int, Field(ge=0)] = 0


class Sweep(Section):
    """Latency and throughput over the batch, and the best batch under a budget."""

    batches: tuple[PositiveInt, ...] | None = Field(
        None, min_length=1, description="default: the profile's min, twice that and so on, and its max"
    )
    budget_ms: PositiveFloat | None = Field(None, description="the latency that the best batch must hold")
    percentile: Literal[50, 90, 99] = Field(99, description="of the latency that the budget is of")


class Measure(Section):
    """What is measured besides accuracy, and how; every CPU runtime gets the same threads."""

    batches: tuple[PositiveInt, ...] = Field((1,), min_length=1)
    seconds: PositiveFloat = Field(1.0, description="time budget per candidate and batch")
    threads: PositiveInt = 1
    require_stable: bool = Field(False, description="exit 5 when a latency stays unstable")
    resources: bool = Field(False, description="peak memory, and energy where the machine tells it")
    scenario: Literal["single_stream", "offline", "server"] | None = Field(
        None, description="MLPerf LoadGen's scenario, with its own verdict and log"
    )
    loadgen: LoadGen | None = Field(None, description="what LoadGen is asked for")
    sweep: Sweep | None = Field(None, description="latency and throughput over the batch")
    concurrency: tuple[PositiveInt, ...] = Field((), description="runners at once, e.g. [1, 2]; threads are split")
    trace: bool = Field(False, description="one inference of each candidate, operator by operator, for Perfetto")


class MetricLimit(Section):
    """The largest drop of a metric against the baseline."""

    max_drop: float = Field(ge=0.0, description="in the metric's own unit; of a share, 0.01 is one percentage point")


class SpeedupLimit(Section):
    """The smallest speedup against the baseline."""

    min: PositiveFloat = Field(description="baseline p50 over candidate p50, e.g. 1.1")


class Gate(Section):
    """What a candidate must hold to pass."""

    batch: PositiveInt | None = Field(None, description="default: the first of measure.batches")
    speedup: SpeedupLimit | None = None
    metrics: dict[str, MetricLimit] = Field(default_factory=dict)


class Variant(Section):
    """One way to compute the model; `options` are fields of its precision's stages, only those that were given."""

    precision: str
    targets: tuple[str, ...] = Field(description="names of the recipe's targets; default: all of them")
    options: dict[str, Any] = Field(default_factory=dict)


class Target(Section):
    """One runtime to deploy to; `options` are fields of its stages, only those that were given."""

    options: dict[str, Any] = Field(default_factory=dict)


class Recipe(Section):
    """The whole recipe, checked. The last four fields are facts about the file and no part of what it says."""

    name: str = Field(description="names the run's folder; default: the name of the recipe's folder")
    model: ModelSource
    inputs: dict[str, InputSpec] = Field(min_length=1, description="in the order of forward()")
    profile: dict[str, ShapeRange] = Field(default_factory=dict, description="range of each dynamic axis")
    data: Data
    metrics: dict[str, MetricOptions] = Field(default_factory=dict)
    variants: dict[str, Variant] = Field(min_length=1)
    targets: dict[str, Target] = Field(min_length=1)
    measure: Measure = Measure()
    gate: Gate | None = None
    path: Path = Field(exclude=True)
    folder: Path = Field(exclude=True)
    text: bytes = Field(exclude=True, repr=False)
    settings: dict[str, str] = Field(default_factory=dict, exclude=True)  # each ${NAME} that was filled

    @classmethod
    def top_level(cls) -> tuple[str, ...]:
        """Return the top-level keys that a recipe's author may write."""
        return tuple(name for name, field in cls.model_fields.items() if not field.exclude)

    def resolve(self, relative: str) -> Path:
        """Return the absolute path of a file that the recipe names: relative to the recipe's folder."""
        return self.folder / relative

    @property
    def batch_axis(self) -> str | None:
        """The word at position 0 of the first input's shape, or None where the batch is fixed."""
        first = next(iter(self.inputs.values())).shape[0]
        return first if isinstance(first, str) else None

    @property
    def evaluation_batch(self) -> int:
        """The batch of the accuracy measurement: as written, else the only one, else the profile's opt, else 32."""
        first = next(iter(self.inputs.values())).shape[0]
        if self.data.evaluation.batch is not None:
            return self.data.evaluation.batch
        if isinstance(first, int):
            return first
        return self.profile[first].opt if first in self.profile else 32
