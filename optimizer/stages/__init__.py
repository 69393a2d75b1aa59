"""The stages of a build, and the tables that say which of them a variant or a target needs."""

from __future__ import annotations

from optimizer.stage import Stage
from optimizer.stages.adopt import Adopt
from optimizer.stages.bfloat16 import BFloat16
from optimizer.stages.calibrate import Calibrate
from optimizer.stages.choose import Choose
from optimizer.stages.collect import Collect
from optimizer.stages.diagnose import Diagnose
from optimizer.stages.engine import EngineRtx, EngineTensorRT
from optimizer.stages.equalize import Equalize
from optimizer.stages.export import Export
from optimizer.stages.float8 import Float8
from optimizer.stages.float16 import Float16
from optimizer.stages.int4 import Int4
from optimizer.stages.quantize import Quantize
from optimizer.stages.refine import Refine
from optimizer.stages.simplify import Simplify
from optimizer.types import Dialect

STAGES: tuple[type[Stage], ...] = (
    Collect,
    Adopt,
    Export,
    Simplify,
    Float16,
    BFloat16,
    Int4,
    Equalize,
    Calibrate,
    Diagnose,
    Choose,
    Quantize,
    Refine,
    Float8,
    EngineRtx,
    EngineTensorRT,
)

# precision -> the stages between the simplified graph and the variant's graph
VARIANTS: dict[str, tuple[type[Stage], ...]] = {
    "fp32": (),
    "fp16": (Float16,),
    "bf16": (BFloat16,),
    "int8": (Equalize, Calibrate, Diagnose, Choose, Quantize, Refine),
    "fp8": (Calibrate, Diagnose, Float8),
    "int4": (Int4,),
}

# target -> the stages between the variant's graph and what executes
TARGETS: dict[str, tuple[type[Stage], ...]] = {
    "onnxruntime": (),
    "onnxruntime_tensorrt": (),
    "openvino": (),
    "torch_compile": (),
    "tensorrt_rtx": (EngineRtx,),
    "tensorrt": (EngineTensorRT,),
}

# targets that execute the PyTorch module itself: no stage of a variant changes it, so they take fp32 alone
OF_MODULE = frozenset({"torch_compile"})

# target -> the form of quantization that its kernels take
DIALECTS: dict[str, Dialect] = {
    "onnxruntime": "cpu",
    "onnxruntime_tensorrt": "tensorrt",
    "openvino": "openvino",
    "tensorrt_rtx": "tensorrt",
    "tensorrt": "tensorrt",
}

# ending of a checkpoint -> how it becomes a module
CHECKPOINT_KINDS: dict[str, str] = {
    ".pt": "state_dict",
    ".pth": "state_dict",
    ".th": "state_dict",
    ".bin": "state_dict",
    ".ckpt": "state_dict",
    ".safetensors": "state_dict",
    ".pt2": "exported_program",
    ".onnx": "onnx",
}
