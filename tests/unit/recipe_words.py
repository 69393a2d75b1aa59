"""Small stages under the real names, so that the screens of bad recipes do not change with each new option."""

from typing import Annotated, Literal

from pydantic import Field

from optimizer.recipe.vocabulary import Vocabulary
from optimizer.stage import Stage


class Float16(Stage):
    name = "float16"
    consumes = {"graph": "onnx"}  # noqa: RUF012
    produces = "onnx"
    keep: tuple[str, ...] = ()

    def run(self, sources, workdir, context):
        raise AssertionError("a recipe is read without running a stage")


class Calibrate(Float16):
    name = "calibrate"
    produces = "calibration"
    method: Literal["minmax", "entropy", "percentile"] = "percentile"
    percentile: float = Field(99.99, gt=50, le=100)


class Quantize(Float16):
    name = "quantize"
    dialect: Literal["cpu", "tensorrt"] = Field("cpu", json_schema_extra={"derived": True})
    per_channel: bool = True


class Engine(Float16):
    name = "engine"
    produces = "engine"
    package: str = Field("tensorrt_rtx", json_schema_extra={"derived": True})
    keep: tuple[str, ...] = Field((), json_schema_extra={"derived": True})
    compute_capabilities: tuple[Annotated[str, Field(pattern=r"^\d+\.\d$")], ...] = Field(("8.6",), min_length=1)


WORDS = Vocabulary(
    variants={"fp32": (), "fp16": (Float16,), "int8": (Calibrate, Quantize)},
    targets={"onnxruntime": (), "tensorrt_rtx": (Engine,), "tensorrt": (Engine,)},
    metrics=("top1", "top5", "mean_iou"),
    checkpoints={".pt": "state_dict", ".safetensors": "state_dict", ".pt2": "exported_program", ".onnx": "onnx"},
)
