"""The config.pbtxt of a bundle in NVIDIA Triton Inference Server: a ModelConfig, as its backends check it at load.

Source: triton-inference-server/common, protobuf/model_config.proto; server, docs/user_guide/model_configuration.md; how
max_batch_size is understood, and which settings exist: src/ of onnxruntime_backend, openvino_backend, tensorrt_backend.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optimizer.bundle.protobuf_text import Message, Name, render
from optimizer.errors import StageError, UsageError
from optimizer.types import TensorSpec

VERSION = 1
LABEL_FILE = "labels.txt"
# Of each input, its file in `warmup/` and the shape of one request that it holds.
Requests = Mapping[str, tuple[str, tuple[int, ...]]]
Ranges = Mapping[str, Mapping[str, int]]  # axis -> min, opt, max

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}
# The OpenVINO backend has no 64-bit floats.
_LACKS = {
    "onnxruntime": frozenset[str](),
    "openvino": frozenset({"float64"}),
    "tensorrt": frozenset({"uint16", "uint32", "uint64", "int16", "float64"}),
}
# What Triton sorts classes of, and a float; float16 it refuses. Source: server, src/classification.cc.
_CLASSIFIED = ("float32", "float64")


def backend_of(runtime: str) -> str:
    """Return Triton's name of what executes it."""
    return "onnxruntime" if runtime == "onnxruntime_tensorrt" else runtime


@dataclass(frozen=True, slots=True)
class Served:
    """What a configuration is made of. `profiles`: the ranges of each optimization profile of an engine.

    `measured`: the batches with a latency. `labels`: how many class names there are.
    """

    name: str
    runtime: str
    device: str
    threads: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Ranges
    batch_axis: int | str | None
    profiles: tuple[Ranges, ...] = ()
    measured: tuple[int, ...] = ()
    labels: int = 0

    @property
    def backend(self) -> str:
        """Triton's name of what executes it."""
        return backend_of(self.runtime)

    @property
    def model_file(self) -> str:
        """The file or folder under the version's folder."""
        return "model.plan" if self.backend == "tensorrt" else "model.onnx"

    @property
    def on_gpu(self) -> bool:
        """Whether its instances run on a GPU."""
        return self.device != "cpu"

    @property
    def max_batch_size(self) -> int:
        """The largest batch that Triton may send; 0: it knows of no batches, a request has the model's whole shape.

        More than 0 where one open axis is the first of every tensor and stands nowhere else, its range starts at 1, and
        the backend runs a batch as it comes: Triton may then join requests to any size up to it. The OpenVINO backend
        compiles the model for max_batch_size alone and pads or refuses every other: there it is 0.
        """
        axis = self.batch_axis
        if self.backend == "openvino" or not isinstance(axis, str) or axis not in self.ranges:
            return 0
        shapes = [spec.shape for spec in (*self.inputs, *self.outputs)]
        joined = all(shape[:1] == (axis,) and axis not in shape[1:] for shape in shapes)
        return self.ranges[axis]["max"] if joined and self.ranges[axis]["min"] == 1 else 0

    def shape_of_request(self, spec: TensorSpec) -> tuple[int, ...]:
        """Return the axes that the configuration names: all, or all but the batch axis; -1 for an open one."""
        axes = spec.shape[1:] if self.max_batch_size else spec.shape
        return tuple(-1 if isinstance(axis, str) else axis for axis in axes)

    @property
    def labelled(self) -> tuple[str, ...]:
        """The outputs whose values the class names name: Triton counts them over all values of a request's answer."""

        def counted(spec: TensorSpec) -> bool:
            shape = self.shape_of_request(spec)
            return spec.dtype in _CLASSIFIED and -1 not in shape and math.prod(shape) == self.labels

        return tuple(spec.name for spec in self.outputs if counted(spec))

    @property
    def open_axes(self) -> tuple[str, ...]:
        """The axes of the inputs that a client chooses and the configuration does not bound."""
        axes = (axis for spec in self.inputs for axis in (spec.shape[1:] if self.max_batch_size else spec.shape))
        return tuple(dict.fromkeys(axis for axis in axes if isinstance(axis, str)))


def write_config(served: Served, warmup: Requests | None = None) -> str:
    """Return the text of config.pbtxt; `warmup` is what Triton infers before it calls the model ready.

    Raises: StageError for a tensor that the backend does not take.
    """
    config: Message = [
        ("name", served.name),
        ("backend", served.backend),
        ("default_model_filename", served.model_file),
        ("max_batch_size", served.max_batch_size),
        *(("input", _tensor(served, spec)) for spec in served.inputs),
        *(("output", _output(served, spec)) for spec in served.outputs),
        ("version_policy", [("latest", [("num_versions", 1)])]),
        ("instance_group", _instances(served)),
    ]
    if served.max_batch_size > 1:
        preferred = _preferred(served)
        config.append(("dynamic_batching", [("preferred_batch_size", preferred)] if preferred else []))
    if served.runtime == "onnxruntime_tensorrt":
        accelerators: Message = [("gpu_execution_accelerator", [("name", "tensorrt")])]
        config.append(("optimization", [("execution_accelerators", accelerators)]))
    for key, value in _settings(served).items():
        config.append(("parameters", [("key", key), ("value", [("string_value", value)])]))
    config += [("model_warmup", sample) for sample in _warmup(served, warmup or {})]
    return render(config)


def _output(served: Served, spec: TensorSpec) -> Message:
    labels: Message = [("label_filename", LABEL_FILE)] if spec.name in served.labelled else []
    return _tensor(served, spec) + labels


def _tensor(served: Served, spec: TensorSpec) -> Message:
    shape = served.shape_of_request(spec)
    field: Message = [("name", spec.name), ("data_type", _type(served, spec)), ("dims", shape or (1,))]
    if not shape and served.max_batch_size:
        field.append(("reshape", [("shape", ())]))  # Triton's way to say that the batch axis is the only one
    elif not shape and served.backend != "onnxruntime":  # which takes [1] for a scalar
        raise StageError(
            f"tensor '{spec.name}' has no axis, and Triton's {served.backend} backend takes no scalars",
            where="triton",
            hint="give it an axis in the model, or bundle without --triton",
        )
    return field


def _type(served: Served, spec: TensorSpec) -> Name:
    kind = None if spec.dtype in _LACKS[served.backend] else _TYPES.get(spec.dtype)
    if kind is None:
        allowed = ", ".join(name for name in _TYPES if name not in _LACKS[served.backend])
        raise StageError(
            f"tensor '{spec.name}' is {spec.dtype}, which Triton's {served.backend} backend does not take",
            where="triton",
            hint=f"allowed: {allowed}; cast it in the model, or bundle without --triton",
        )
    return Name(kind)


def _instances(served: Served) -> Message:
    """One instance, as measured: by itself Triton starts two on a CPU, which share its processors.

    On GPUs it is one on each: which of them the server has is not known here, so `gpus` names none.
    """
    group: Message = [("kind", Name("KIND_GPU" if served.on_gpu else "KIND_CPU")), ("count", 1)]
    if len(served.profiles) > 1:  # unnamed, Triton takes the first alone
        group.append(("profile", tuple(str(index) for index in range(len(served.profiles)))))
    return group


def _preferred(served: Served) -> tuple[int, ...]:
    """Return the batches that the profiles of an engine were tuned for, where they were measured.

    Triton's guide advises against preferred sizes elsewhere: it then takes all that waits, up to max_batch_size.
    """
    if len(served.profiles) < 2 or not isinstance(served.batch_axis, str):
        return ()
    tuned = {ranges[served.batch_axis]["opt"] for ranges in served.profiles if served.batch_axis in ranges}
    return tuple(sorted(tuned & set(served.measured)))


def _settings(served: Served) -> dict[str, str]:
    """Return the settings that the run was measured with, in the words of the backend."""
    if served.on_gpu:
        return {}
    if served.backend == "openvino":
        return {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(served.threads)}
    return {"intra_op_thread_count": str(served.threads), "inter_op_thread_count": "1", "execution_mode": "0"}


def _warmup(served: Served, requests: Requests) -> list[Message]:
    """Return the requests that Triton makes before it calls the model ready: one sample, and the largest batch."""
    if not requests:
        return []
    by_name = {spec.name: spec for spec in served.inputs}
    inputs: Sequence[tuple[str, Message]] = [
        ("inputs", [("key", name), ("value", _warmup_input(served, by_name[name], file, shape))])
        for name, (file, shape) in requests.items()
    ]
    sizes = sorted({1, served.max_batch_size or 1})
    return [[("name", f"golden, batch {size}"), ("batch_size", size), *inputs] for size in sizes]


def _warmup_input(served: Served, spec: TensorSpec, file: str, shape: tuple[int, ...]) -> Message:
    return [("data_type", _type(served, spec)), ("dims", shape or (1,)), ("input_data_file", file)]


def refuse(runtime: str, receipt: Mapping[str, object]) -> None:
    """Refuse what no backend of Triton loads.

    Raises: UsageError for TensorRT-RTX, and for an engine whose weights lie elsewhere.
    """
    if runtime == "tensorrt_rtx":
        raise UsageError(
            "Triton's tensorrt backend links TensorRT and cannot load a plan of TensorRT-RTX, which is another library",
            where="bundle --triton",
            hint="Build the variant for the target tensorrt or onnxruntime and bundle that, or bundle this one without "
            "--triton: optimizer.runtime.load serves it.",
        )
    options = receipt.get("options")
    if isinstance(options, Mapping) and options.get("strip_plan"):
        raise UsageError(
            "the plan was built without its weights (strip_plan), and Triton's tensorrt backend does not refit one",
            where="bundle --triton",
            hint="Build it without strip_plan, or bundle without --triton.",
        )
