"""The demo's work as a plain script does it by hand: each phase timed, one JSON object on stdout.

Exports the CNN, simplifies, converts to float16, quantizes for the CPU and for TensorRT, builds three engines, checks
each graph against the one before at several batches, and evaluates every graph on the test split. Latency is left out:
both sides would spend the time they are given.
"""

import time

STARTED = time.perf_counter()

import json
import logging
import pathlib
import sys
import tempfile
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import onnxslim
import tensorrt_rtx as trt
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from PIL import Image
from safetensors.torch import load_file

DEMO = pathlib.Path(__file__).parent.parent / "recipes" / "digits-cnn"
sys.path.insert(0, str(DEMO))
from data import digits  # type: ignore[import-not-found]
from model import SmallCNN  # type: ignore[import-not-found]

CAPABILITIES = ("SM86", "SM89", "SM120")
BATCHES = (1, 3, 16, 64)
PHASES: dict[str, float] = {}


def phase(name: str) -> None:
    """Everything since the last phase was this one."""
    PHASES[name] = time.perf_counter() - STARTED - sum(PHASES.values())


def prepare(pictures: np.ndarray) -> np.ndarray:
    resized = [np.asarray(Image.fromarray(p).resize((32, 32), Image.Resampling.BILINEAR)) / 16 for p in pictures]
    return np.stack([np.repeat(r[None], 3, 0) for r in resized]).astype(np.float32)


class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self, images: np.ndarray) -> None:
        self.batches = iter([{"image": images[i : i + 16]} for i in range(0, len(images), 16)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def session(path: pathlib.Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(opened: ort.InferenceSession, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = opened.run(None, {"image": images})[0]
    return found


def check(parent: pathlib.Path, child: pathlib.Path, images: np.ndarray, tolerance: float) -> None:
    one, two = session(parent), session(child)
    for batch in BATCHES:
        expected, found = run(one, images[:batch]), run(two, images[:batch])
        error = np.abs(expected - found).max() / np.abs(expected).max()
        assert error <= tolerance, (child.name, batch, error)


def engine(source: pathlib.Path, destination: pathlib.Path) -> None:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(source))
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 3, 32, 32), (16, 3, 32, 32), (64, 3, 32, 32))
    config.add_optimization_profile(profile)
    config.num_compute_capabilities = len(CAPABILITIES)
    for i, name in enumerate(CAPABILITIES):
        config.set_compute_capability(getattr(trt.ComputeCapability, name), i)
    destination.write_bytes(builder.build_serialized_network(network, config))


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    folder = pathlib.Path(tempfile.mkdtemp())
    phase("start")
    train, (raw, labels) = prepare(digits("train")[0][:256]), digits("test")
    images = prepare(raw)
    phase("data")
    model = SmallCNN()
    model.load_state_dict(load_file(DEMO / "checkpoint.safetensors"))
    model.eval()
    example = (torch.from_numpy(images[:2]),)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    program = torch.onnx.export(
        model, example, dynamo=True, dynamic_shapes=({0: "batch"},), opset_version=20, verbose=False, **names
    )
    program.save(str(folder / "export.onnx"))
    opened = session(folder / "export.onnx")
    for batch in BATCHES:
        with torch.inference_mode():
            expected = model(torch.from_numpy(images[:batch])).numpy()
        assert np.abs(expected - run(opened, images[:batch])).max() < 1e-4
    phase("export")
    onnx.save(onnxslim.slim(str(folder / "export.onnx")), folder / "fp32.onnx")
    check(folder / "export.onnx", folder / "fp32.onnx", images, 1e-5)
    phase("simplify")
    onnx.save(convert_float_to_float16(onnx.load(folder / "fp32.onnx"), keep_io_types=True), folder / "fp16.onnx")
    check(folder / "fp32.onnx", folder / "fp16.onnx", images, 0.02)
    phase("fp16")
    common = {
        "quant_format": QuantFormat.QDQ,
        "per_channel": True,
        "weight_type": QuantType.QInt8,
        "calibrate_method": CalibrationMethod.Percentile,
    }
    quantize_static(
        folder / "fp32.onnx", folder / "int8.onnx", Reader(train), activation_type=QuantType.QUInt8, **common
    )
    check(folder / "fp32.onnx", folder / "int8.onnx", images, 0.2)
    symmetric = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(
        folder / "fp32.onnx", folder / "int8trt.onnx", Reader(train),
        activation_type=QuantType.QInt8, extra_options=symmetric, **common,
    )  # fmt: skip
    check(folder / "fp32.onnx", folder / "int8trt.onnx", images, 0.2)
    phase("int8")
    for name in ("fp32", "fp16", "int8trt"):
        engine(folder / f"{name}.onnx", folder / f"{name}.plan")
    phase("engines")
    with torch.inference_mode():
        found = [model(torch.from_numpy(images[i : i + 16])).numpy() for i in range(0, len(images), 16)]
    accuracy = {"torch": float((np.concatenate(found).argmax(1) == labels).mean())}
    for name in ("fp32", "fp16", "int8", "fp32", "fp16", "int8trt"):  # three on the CPU, three behind engines
        opened = session(folder / f"{name}.onnx")
        found = [run(opened, images[i : i + 16]) for i in range(0, len(images), 16)]
        accuracy[name] = float((np.concatenate(found).argmax(1) == labels).mean())
    phase("accuracy")
    print(json.dumps({"phases": PHASES, "accuracy": accuracy}))


if __name__ == "__main__":
    main()
