"""`report.json`, schema version 1, as data: strict when written, strict when read."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["pass", "fail", "inconclusive"]
Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RecipeRef(_Part):
    """Which recipe, by content."""

    name: str
    path: str
    sha256: str


class Gpu(_Part):
    """The GPU that measured."""

    name: str
    compute_capability: str
    driver: str
    memory_bytes: int


class Environment(_Part):
    """The machine and the versions behind every number of the report."""

    python: str
    platform: str
    cpu: str
    cores: int
    memory_bytes: int
    gpu: Gpu | None
    packages: dict[str, str]
    threads: int = 1  # CPU threads of every runner while measuring
    affinity: tuple[int, ...] = ()  # the processors that measuring was pinned to
    # by batch: what the machine did meanwhile
    surroundings: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Precision(_Part):
    """Asked for, and delivered as a share of multiply-accumulates as the runtime executes them."""

    requested: str
    delivered: dict[str, float] = Field(default_factory=dict)
    source: str | None = None  # what the shares were read from


class ArtifactRef(_Part):
    """A file of the run's folder; `path` is relative to `report.json`."""

    path: str
    sha256: str
    bytes: int
    format: str


class MetricValue(_Part):
    """A metric over the evaluation set; shares are fractions of 1."""

    value: float
    samples: int
    ci95: Interval


class MetricDelta(_Part):
    """Candidate minus baseline, paired by sample."""

    value: float
    ci95: Interval
    test: str
    p_value: float


class Numerics(_Part):
    """An output against the baseline's; null where not defined: an exact match has no finite SQNR."""

    max_abs: float | None
    cosine: float | None
    sqnr_db: float | None


class Latency(_Part):
    """Milliseconds per call at one batch size."""

    p50: float
    p90: float
    p99: float
    mean: float
    samples: int
    warmup: int
    stable: bool
    cv: float | None = None  # coefficient of variation of the samples
    p50_ci95: Interval | None = None
    rounds: int = 0
    openings: int = 1  # how often the candidate was opened anew
    disturbed_rounds: int = 0
    disturbed: bool = False  # rounds that count were disturbed
    unstable: str | None = None  # what did not hold still


class Difference(_Part):
    """Slower or faster than what it is compared with: a strict interval outside a tolerance; above 1 is slower."""

    kind: Literal["faster", "slower", "same within tolerance", "undecided"]
    ratio: float
    interval: Interval
    level: float
    tolerance: float


class Speedup(_Part):
    """The baseline's p50, or another candidate's, over the candidate's, from interleaved samples."""

    value: float
    ci95: Interval
    difference: Difference | None = None


class AgainstFp32(_Part):
    """What reduced precision gains and gives up against the fp32 candidate of the same runtime and device."""

    candidate: str  # that fp32 candidate
    speedup: dict[str, Speedup]  # by batch
    accuracy_delta: dict[str, MetricDelta] = Field(default_factory=dict)  # this one minus that one, paired by sample


class Disturbance(_Part):
    """Rounds that were disturbed and count all the same, for want of others: no limit on a latency rests on them."""

    candidates: tuple[str, ...]  # whose latency is made of them
    rounds: int
    disturbed_rounds: int
    causes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What it means for the verdict, and what to do."""
        *most, last = self.candidates
        names = f"{', '.join(most)} and {last}" if most else last
        by = f" ({'; '.join(self.causes)})" if self.causes else ""
        return (
            f"The speedup decides nothing: {self.disturbed_rounds} of the {self.rounds} rounds behind the latency of "
            f"{names} were disturbed{by}. Quieten the machine or raise measure.seconds, and measure again, with "
            "--remeasure"
        )


class Verdict(_Part):
    """Judged, with the reasons as sentences; those of `disturbed` are the last of them."""

    status: Status
    reasons: tuple[str, ...] = ()
    disturbed: tuple[Disturbance, ...] = ()

    @property
    def own_reasons(self) -> tuple[str, ...]:
        """The reasons without the sentences of `disturbed`, which are alike for many candidates."""
        alike = {disturbance.sentence for disturbance in self.disturbed}
        return tuple(reason for reason in self.reasons if reason not in alike)


class LayerPrecision(_Part):
    """A node that multiplies and accumulates: what was asked for, what executes, and why the two differ."""

    node: str
    module: str  # of PyTorch; empty where the graph does not know it
    operator: str
    macs: int
    requested: str
    delivered: str
    reason: str


class TensorCalibration(_Part):
    """One calibrated activation by its chosen method; shares are fractions of its values."""

    tensor: str
    module: str = ""
    method: str
    clipped: float
    sqnr_db: float | None  # what int8 leaves of this tensor alone
    convergence: float | None  # share its magnitude moved by over the last quarter of the samples
    outside: float | None  # share of the evaluation values beyond the calibrated extremes
    complaints: tuple[str, ...] = ()


class Calibration(_Part):
    """What the calibration doctor says of one table."""

    method: str
    samples: int
    tensors: int
    picked: dict[str, int]  # tensors by the method that serves them
    findings: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()  # evaluation data against calibration data
    worst: tuple[TensorCalibration, ...] = ()
    spared: tuple[str, ...] = ()  # layers that measurement left in float
    table: str | None = None  # path in the run


class CandidateReport(_Part):
    """A variant on a target: what was built, what it computes, how fast it is, and whether it may ship."""

    name: str
    variant: str
    runtime: str
    device: str
    status: Literal["measured", "built", "failed"]
    reason: str | None = None
    precision: Precision
    artifact: ArtifactRef | None = None
    accuracy: dict[str, MetricValue] = Field(default_factory=dict)
    accuracy_runtime: str | None = None
    accuracy_delta: dict[str, MetricDelta] = Field(default_factory=dict)
    numerics: dict[str, Numerics] = Field(default_factory=dict)
    latency_ms: dict[str, Latency] | None = None
    throughput: dict[str, float] | None = None
    speedup: dict[str, Speedup] | None = None
    against_fp32: AgainstFp32 | None = None  # null for fp32 itself, and where its target has none that was measured
    energy_mj_per_item: float | None = None
    peak_memory_bytes: int | None = None
    verdict: Verdict | None = None
    layers: tuple[LayerPrecision, ...] = ()  # those with most multiply-accumulates first
    layer_count: int = 0  # how many there are; the artifact's receipt.json has all
    memory: dict[str, Any] | None = None  # of a process that holds this candidate alone
    energy: dict[str, Any] | None = None
    scenario: dict[str, Any] | None = None  # MLPerf LoadGen's verdict and numbers
    sweep: dict[str, Any] | None = None  # latency and throughput over the batch
    concurrency: tuple[dict[str, Any], ...] = ()
    execution: dict[str, Any] = Field(default_factory=dict)  # what a session on a GPU says of graphs, nodes, copies
    proof: tuple[str, ...] = ()  # at which sizes its outputs were held against what, and how far they are
    trtexec: str | None = None  # of an engine: the command line of NVIDIA's tool that builds the like


class StageReport(_Part):
    """One step of the build."""

    id: str
    stage: str
    variant: str | None
    key: str | None  # null where a failure upstream left the step without a source
    reused: bool
    seconds: float
    peak_rss_bytes: int
    output_sha256: str | None
    notes: tuple[str, ...] = ()
    started_s: float | None = None  # after the build's start; null where it did not run


class Report(_Part):
    """The whole of `report.json`."""

    schema_version: Literal[1] = 1
    recipe: RecipeRef
    environment: Environment
    baseline: str
    candidates: tuple[CandidateReport, ...]
    stages: tuple[StageReport, ...]
    pareto: tuple[str, ...]
    recommended: dict[str, str]
    verdict: Verdict
    gate: dict[str, Any] | None = None  # as the recipe wrote it
    metrics: dict[str, Literal["higher", "lower"]] = Field(default_factory=dict)  # which direction is better
    command: str = ""  # reproduces this report
    created: str = ""  # ISO 8601, UTC
    notes: tuple[str, ...] = ()
    calibration: dict[str, Calibration] = Field(default_factory=dict)  # by variant, or variant@dialect

    def candidate(self, name: str) -> CandidateReport | None:
        """Return the candidate of that name."""
        return next((c for c in self.candidates if c.name == name), None)
