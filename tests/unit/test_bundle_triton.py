from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import bundle_run
import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from optimizer.bundle.protobuf_text import Name, render
from optimizer.bundle.triton_config import Served, write_config
from optimizer.bundle.triton_readme import write_readme
from optimizer.bundle.triton_rehearsal import Rehearsal, not_rehearsed, rehearse
from optimizer.bundle.write import write_bundle
from optimizer.cli.bundle import command
from optimizer.digest import sha256_file
from optimizer.errors import StageError, UsageError
from optimizer.results import CandidateReport
from optimizer.runtime import load
from optimizer.runtime.golden import GOLDEN, write_golden
from optimizer.types import TensorSpec
from tests.triton_schema import parameters, parse, read, refusals, type_name

IMAGE = TensorSpec("image", "float32", ("batch", 3, 2, 2))
LOGITS = TensorSpec("logits", "float32", ("batch", 3))
BATCH = {"batch": {"min": 1, "opt": 2, "max": 8}}


def served(**changes: Any) -> Served:
    usual = Served("tiny", "onnxruntime", "cpu", 2, (IMAGE,), (LOGITS,), BATCH, "batch")
    return replace(usual, **changes)


def restamp(run: Path) -> Path:
    """Let run.json say what the files of the run are now."""
    record = json.loads((run / "run.json").read_text())
    record["files"] = {
        path.relative_to(run).as_posix(): sha256_file(path)
        for path in run.rglob("*")
        if path.is_file() and path.name not in ("run.json", "report.json")
    }
    (run / "run.json").write_text(json.dumps(record))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return bundle_run.write_run(tmp_path / "run")


def openvino_run(folder: Path, variant: str = "int8") -> Path:
    name = f"{variant}@openvino"
    run = bundle_run.write_run(folder, [bundle_run.candidate("fp32@torch"), bundle_run.candidate(name)])
    shutil.rmtree(run / "artifacts" / name)
    bundle_run.classifier(run / "artifacts" / name / "model.onnx")
    return restamp(run)


def engine_run(folder: Path, profiles: list[dict[str, Any]], **options: Any) -> Path:
    built = bundle_run.candidate("fp16@tensorrt", device="cuda:0")
    latency = built["latency_ms"]["1"]
    built["latency_ms"] = {"1": latency, "8": latency}
    run = bundle_run.write_run(folder, [bundle_run.candidate("fp32@torch"), built])
    record = json.loads((run / "run.json").read_text())
    receipt = {
        "version": "10.13.3.9",
        "compute_capabilities": ["8.9"],
        "inputs": record["inputs"],
        "outputs": record["outputs"],
        "profiles": profiles,
        "options": options,
    }
    (run / "artifacts" / "fp16@tensorrt" / "engine.json").write_text(json.dumps(receipt))
    return restamp(run)


def external_run(run: Path, name: str) -> Path:
    import onnx

    file = run / "artifacts" / name / "model.onnx"
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return restamp(run)


def add(run: Path, name: str, place: Path) -> Path:
    """The model's folder in the repository."""
    return write_bundle(run, name, place, triton=True) / "triton" / "tiny"


def readme_of(made: Served, seen: Rehearsal | None = None) -> str:
    candidate = CandidateReport.model_validate(bundle_run.candidate(f"fp32@{made.runtime}"))
    return write_readme(made, candidate, {}, seen or Rehearsal(made.inputs, made.outputs, True, "rehearsed"), {})


def save_graph(path: Path, nodes: list[Any], constants: dict[str, list[int]], kind: int = TensorProto.FLOAT) -> Path:
    """Write nodes from x to y, both of the shape batch, length."""
    import onnx

    graph = helper.make_graph(
        nodes,
        "graph",
        *([helper.make_tensor_value_info(name, kind, ["batch", "length"])] for name in ("x", "y")),
        [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def session(model: Path) -> Any:
    return onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_any_text_comes_back_from_protobufs_own_parser(text: str) -> None:
    config = parse(render([("name", text), ("max_batch_size", 3), ("input", [("name", text), ("dims", (-1, 2))])]))
    assert (config.name, config.max_batch_size) == (text, 3)
    assert (config.input[0].name, list(config.input[0].dims)) == (text, [-1, 2])


def test_a_name_of_an_enum_is_not_quoted_and_an_unknown_field_is_refused_by_the_schema() -> None:
    assert render([("kind", Name("KIND_CPU")), ("optional", True)]) == "kind: KIND_CPU\noptional: true\n"
    with pytest.raises(Exception, match="no field named"):
        parse(render([("max_batchsize", 3)]))


def test_the_configuration_is_what_onnxruntime_reports_of_the_very_file(run: Path, tmp_path: Path) -> None:
    model = add(run, "fp32@onnxruntime", tmp_path / "b")
    config = read(model)
    assert (config.name, config.backend, config.default_model_filename) == ("tiny", "onnxruntime", "model.onnx")
    assert config.max_batch_size == 8
    opened = session(model / "1" / config.default_model_filename)
    assert refusals(config, opened) == []
    # A batch alone is [1] to a client and [] to the model.
    assert (list(config.output[1].dims), list(config.output[1].reshape.shape)) == ([1], [])
    assert config.output[1].HasField("reshape")
    for spoil, said in (
        (lambda c: c.input[0].dims.append(4), r"input 'image' is \[-1, 3, 2, 2, 4\]"),
        (lambda c: c.output[0].dims.__setitem__(0, 4), r"output 'logits' is \[-1, 4\], the model has \[-1, 3\]"),
        (lambda c: c.output[0].dims.__setitem__(0, -1), r"output 'logits' is \[-1, -1\]"),
        (lambda c: setattr(c.output[1], "data_type", c.input[0].data_type), "output 'best' is TYPE_FP32"),
        (lambda c: setattr(c.input[0], "name", "picture"), r"inputs are \['picture'\]"),
        (lambda c: setattr(c, "max_batch_size", 0), "the model has"),
    ):
        wrong = read(model)
        spoil(wrong)
        with pytest.raises(AssertionError, match=said):
            assert refusals(wrong, opened) == []


def test_one_instance_with_the_measured_threads_and_a_batcher_without_invented_sizes(run: Path, tmp_path: Path) -> None:
    config = read(add(run, "fp32@onnxruntime", tmp_path / "b"))
    assert [(group.kind, group.count) for group in config.instance_group] == [(2, 1)]  # KIND_CPU
    assert parameters(config) == {"intra_op_thread_count": "1", "inter_op_thread_count": "1", "execution_mode": "0"}
    assert config.HasField("dynamic_batching")
    assert list(config.dynamic_batching.preferred_batch_size) == []
    assert config.version_policy.latest.num_versions == 1
    assert parameters(parse(write_config(served(threads=7))))["intra_op_thread_count"] == "7"


def test_the_warm_up_is_a_golden_sample_at_batch_1_and_the_largest(run: Path, tmp_path: Path) -> None:
    model = add(run, "fp32@onnxruntime", tmp_path / "b")
    config = read(model)
    assert [sample.batch_size for sample in config.model_warmup] == [1, 8]
    for sample in config.model_warmup:
        given = sample.inputs["image"]
        raw = (model / "warmup" / given.input_data_file).read_bytes()
        array = np.frombuffer(raw, np.float32).reshape(list(given.dims))
        np.testing.assert_array_equal(array, bundle_run.images()[0])
        assert type_name(given.data_type) == "TYPE_FP32"


def test_labels_stand_one_a_line_beside_the_output_that_they_count(run: Path, tmp_path: Path) -> None:
    model = add(run, "fp32@onnxruntime", tmp_path / "b")
    assert [output.label_filename for output in read(model).output] == ["labels.txt", ""]
    assert (model / "labels.txt").read_bytes() == "cat\ndog\nélan\n".encode()
    (run / "labels.json").write_text(json.dumps(["cat", "dog"]))
    model = add(restamp(run), "fp32@onnxruntime", tmp_path / "two")
    assert [output.label_filename for output in read(model).output] == ["", ""]
    assert not (model / "labels.txt").exists()
    assert "no output here always has 2 of those" in (model.parent / "README.md").read_text()
    (run / "labels.json").write_text(json.dumps(["cat", "do\ng", "élan"]))
    with pytest.raises(StageError, match=r"the class name 'do\\ng' has a line break"):
        add(restamp(run), "fp32@onnxruntime", tmp_path / "three")


def test_only_what_triton_takes_for_the_end_of_a_line_ends_a_class_name(run: Path, tmp_path: Path) -> None:
    names = ["c\u2028at", "do\x0bg\x85", "é\rlan\x1c"]
    (run / "labels.json").write_text(json.dumps(names))
    model = add(restamp(run), "fp32@onnxruntime", tmp_path / "b")
    # As std::getline does: up to each line feed.
    assert (model / "labels.txt").read_bytes().decode().split("\n") == [*names, ""]
    assert "It has no class names" not in (model.parent / "README.md").read_text()


@pytest.mark.parametrize(
    ("dtype", "labelled"), [("float32", True), ("float64", True), ("float16", False), ("int64", False)]
)
def test_labels_stand_at_no_output_whose_classes_triton_does_not_sort(dtype: str, labelled: bool) -> None:
    made = served(outputs=(TensorSpec("logits", dtype, ("batch", 3)),), labels=3)
    config = parse(write_config(made))
    assert config.output[0].label_filename == ("labels.txt" if labelled else "")
    assert ("not in float16" in readme_of(made)) == (not labelled)
    assert "class names" not in readme_of(replace(made, labels=0))


TWO_AXES = (TensorSpec("ids", "int64", ("batch", "length")), TensorSpec("mask", "bool", ("batch", "length")))


@pytest.mark.parametrize(
    ("largest", "changes"),
    [
        (8, {}),
        (8, {"inputs": TWO_AXES}),
        (1, {"ranges": {"batch": {"min": 1, "opt": 1, "max": 1}}}),
        # The batcher starts at 1; a size is fixed; an input or output without the batch, or with another first axis.
        (0, {"ranges": {"batch": {"min": 2, "opt": 2, "max": 8}}}),
        (0, {"ranges": {}}),
        (0, {"batch_axis": 4, "inputs": (TensorSpec("image", "float32", (4, 3)),)}),
        (0, {"inputs": (IMAGE, TensorSpec("scale", "float32", (1,)))}),
        (0, {"outputs": (LOGITS, TensorSpec("mean", "float32", ()))}),
        (0, {"outputs": (TensorSpec("pairs", "float32", ("batch", "batch")),)}),
        (0, {"outputs": (TensorSpec("frames", "float32", ("length", "batch")),)}),
        # It would compute every request at the maximum.
        (0, {"runtime": "openvino"}),
    ],
)
def test_triton_may_join_requests_only_where_a_batch_is_one_open_first_axis(
    largest: int, changes: dict[str, Any]
) -> None:
    made = served(**changes)
    config = parse(write_config(made))
    assert config.max_batch_size == largest
    assert config.HasField("dynamic_batching") == (largest > 1)
    for spec, tensor in zip((*made.inputs, *made.outputs), (*config.input, *config.output), strict=True):
        whole = [-1 if isinstance(axis, str) else axis for axis in spec.shape]
        assert list(tensor.dims) == ((whole[1:] if largest else whole) or [1])


def test_types_are_those_of_the_backend_and_another_is_refused() -> None:
    names = ["bool", "uint8", "int8", "int32", "int64", "float16", "float32"]
    tensors = tuple(TensorSpec(f"in_{name}", name, ("batch", 2)) for name in names)
    config = parse(write_config(served(runtime="tensorrt", device="cuda:0", inputs=tensors)))
    expected = ["BOOL", "UINT8", "INT8", "INT32", "INT64", "FP16", "FP32"]
    assert [type_name(tensor.data_type) for tensor in config.input] == [f"TYPE_{name}" for name in expected]
    double = (TensorSpec("x", "float64", ("batch", 2)),)
    assert type_name(parse(write_config(served(inputs=double))).input[0].data_type) == "TYPE_FP64"
    for runtime in ("tensorrt", "openvino"):
        with pytest.raises(
            StageError, match=f"'x' is float64, which Triton's {runtime} backend does not take"
        ) as error:
            write_config(served(runtime=runtime, inputs=double))
        assert "allowed: bool, uint8" in str(error.value.hint)
    with pytest.raises(StageError, match="'x' is bfloat16"):
        write_config(served(inputs=(TensorSpec("x", "bfloat16", ("batch", 2)),)))


def test_a_scalar_is_one_value_to_onnxruntime_and_refused_elsewhere() -> None:
    outputs = (LOGITS, TensorSpec("mean", "float32", ()))
    tensor = parse(write_config(served(outputs=outputs))).output[1]
    assert (list(tensor.dims), tensor.HasField("reshape")) == ([1], False)
    with pytest.raises(StageError, match=r"'mean' has no axis, and Triton's openvino backend takes no scalars"):
        write_config(served(runtime="openvino", outputs=outputs))


def test_openvino_runs_a_request_as_it_comes(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = add(openvino_run(tmp_path / "run"), "int8@openvino", tmp_path / "b")
    config = read(model)
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("openvino", "model.onnx", 0)
    assert list(config.input[0].dims) == [-1, 3, 2, 2]
    assert [list(output.dims) for output in config.output] == [[-1, 3], [-1]]
    assert [output.label_filename for output in config.output] == ["", ""]  # a request may hold several samples
    expected = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}
    assert parameters(config) == expected
    (sample,) = config.model_warmup
    assert (sample.batch_size, list(sample.inputs["image"].dims)) == (1, [1, 3, 2, 2])
    readme = (model.parent / "README.md").read_text()
    assert "bfloat16" in readme
    assert "It has no class names" in readme
    assert not (model / "labels.txt").exists()
    assert "signed 32 bits" not in readme  # its input is float32


def test_a_model_of_fixed_batch_is_warmed_with_as_many_samples(run: Path, tmp_path: Path) -> None:
    import onnx

    file = run / "artifacts" / "fp32@onnxruntime" / "model.onnx"
    graph = onnx.load(file)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 7
    onnx.save(graph, file)
    record = json.loads((run / "run.json").read_text())
    for spec in (*record["inputs"], *record["outputs"]):
        spec["shape"][0] = 7
    (run / "run.json").write_text(json.dumps(record | {"batch_axis": 7, "profile": {}}))
    model = add(restamp(run), "fp32@onnxruntime", tmp_path / "b")
    config = read(model)
    assert refusals(config, session(model / "1" / "model.onnx")) == []
    given = config.model_warmup[0].inputs["image"]
    assert (config.max_batch_size, list(given.dims)) == (0, [7, 3, 2, 2])
    raw = np.frombuffer((model / "warmup" / given.input_data_file).read_bytes(), np.float32).reshape(7, 3, 2, 2)
    np.testing.assert_array_equal(raw[:5], bundle_run.images())
    np.testing.assert_array_equal(raw[5:], bundle_run.images()[[4, 4]])


def test_a_plan_is_served_on_the_gpu_by_all_of_its_profiles(tmp_path: Path) -> None:
    profiles = [{"batch": {"min": 1, "opt": opt, "max": 8}} for opt in (1, 4, 8)]
    run = engine_run(tmp_path / "run", profiles, version_compatible=True)
    model = add(run, "fp16@tensorrt", tmp_path / "b")
    config = read(model)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.profile)) == (1, 1, ["0", "1", "2"])  # KIND_GPU
    assert list(config.dynamic_batching.preferred_batch_size) == [1, 8]  # 4 was not measured
    assert parameters(config) == {}
    assert (model / "1" / "model.plan").read_bytes() == (tmp_path / "b" / "engine.plan").read_bytes()
    readme = (model.parent / "README.md").read_text()
    for said in (
        "TensorRT 10.13.3.9",
        "compute capability 8.9",
        "version-compatible=true",
        "--gpus all",
        "one instance on every GPU",
        "not rehearsed: an engine executes on its GPU alone. Send the inputs of the bundle's golden.npz",
        "The model alone, without Triton: cuda:0, one instance; ",
    ):
        assert said in readme
    assert list(group.gpus) == []  # Triton then takes all
    one = read(add(engine_run(tmp_path / "one", profiles[:1]), "fp16@tensorrt", tmp_path / "b1"))
    assert (list(one.instance_group[0].profile), list(one.dynamic_batching.preferred_batch_size)) == ([], [])


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime_tensorrt"])
def test_onnxruntime_on_a_gpu_has_the_provider_that_was_measured(runtime: str) -> None:
    config = parse(write_config(served(runtime=runtime, device="cuda:0")))
    assert (config.backend, config.instance_group[0].kind) == ("onnxruntime", 1)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [each.name for each in accelerators] == (["tensorrt"] if runtime == "onnxruntime_tensorrt" else [])
    assert "one instance on every GPU" in readme_of(served(runtime=runtime, device="cuda:0"))
    assert "on every GPU" not in readme_of(served())


def test_what_no_backend_loads_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    given = [bundle_run.candidate("fp32@torch"), bundle_run.candidate("fp16@tensorrt_rtx")]
    run = bundle_run.write_run(tmp_path / "run", given)
    with pytest.raises(UsageError, match="cannot load a plan of TensorRT-RTX") as caught:
        add(run, "fp16@tensorrt_rtx", tmp_path / "out" / "b")
    assert "without --triton" in str(caught.value.hint)
    stripped = engine_run(tmp_path / "stripped", [], strip_plan=True)
    with pytest.raises(UsageError, match="built without its weights"):
        add(stripped, "fp16@tensorrt", tmp_path / "out" / "b")
    assert list((tmp_path / "out").iterdir()) == []
    write_bundle(run, "fp16@tensorrt_rtx", tmp_path / "out" / "b")


def test_weights_beside_the_graph_stay_beside_it(run: Path, tmp_path: Path) -> None:
    model = add(external_run(run, "fp32@onnxruntime"), "fp32@onnxruntime", tmp_path / "b")
    # A model of several files is a folder to the onnxruntime backend.
    folder = model / "1" / read(model).default_model_filename
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert refusals(read(model), session(folder / "model.onnx")) == []


def test_weights_of_an_openvino_model_lie_flat(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    run = external_run(openvino_run(tmp_path / "run"), "int8@openvino")
    model = add(run, "int8@openvino", tmp_path / "b")
    assert sorted(path.name for path in (model / "1").iterdir()) == ["model.onnx", "model.onnx.data"]


def test_the_model_lies_on_the_disk_once_and_twice_where_links_are_not_to_be_had(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = add(run, "fp32@onnxruntime", tmp_path / "linked")
    assert (linked / "1" / "model.onnx").samefile(tmp_path / "linked" / "model.onnx")

    def refuse(number: int) -> None:
        def link(source: object, destination: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "link", link)

    refuse(errno.EPERM)
    copied = add(run, "fp32@onnxruntime", tmp_path / "copied")
    assert not (copied / "1" / "model.onnx").samefile(tmp_path / "copied" / "model.onnx")
    left = (tmp_path / "linked" / "passport.json").read_bytes()
    assert left == (tmp_path / "copied" / "passport.json").read_bytes()
    refuse(errno.ENOSPC)
    with pytest.raises(StageError, match="could not be written: No space left"):
        add(run, "fp32@onnxruntime", tmp_path / "full")


def test_the_repository_is_sealed_and_named_by_the_passport(run: Path, tmp_path: Path) -> None:
    model = add(run, "fp32@onnxruntime", tmp_path / "b")
    passport = json.loads((tmp_path / "b" / "passport.json").read_text())
    told = passport["triton"]
    assert (told["model"], told["backend"], told["max_batch_size"], told["rehearsed"]) == (
        "tiny", "onnxruntime", 8, True,
    )  # fmt: skip
    assert {name for name in passport["files"] if name.startswith("triton/")} == {
        "triton/README.md",
        "triton/tiny/config.pbtxt",
        "triton/tiny/labels.txt",
        "triton/tiny/1/model.onnx",
        "triton/tiny/warmup/input0.raw",
    }
    with load(tmp_path / "b") as deployment:
        assert all(difference.within for difference in deployment.check_golden())
    text = (model / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(text.replace("max_batch_size: 8", "max_batch_size: 9"))
    with pytest.raises(StageError, match=r"'triton/tiny/config\.pbtxt' was changed"):
        load(tmp_path / "b")


def test_without_the_flag_a_bundle_has_nothing_of_it(run: Path, tmp_path: Path) -> None:
    bundle = write_bundle(run, "fp32@onnxruntime", tmp_path / "b")
    assert not (bundle / "triton").exists()
    assert "triton" not in json.loads((bundle / "passport.json").read_text())


def test_two_repositories_of_one_run_are_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, second = (add(run, "int8@onnxruntime", tmp_path / name).parent for name in ("a", "b"))
    read_all = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (first, second)]
    assert read_all[0] == read_all[1]


def test_the_readme_says_that_preprocessing_is_the_clients(run: Path, tmp_path: Path) -> None:
    text = (add(run, "fp32@onnxruntime", tmp_path / "b").parent / "README.md").read_text()
    assert "**Preprocessing is not part of this repository.**" in text
    assert "`image`: `scale`, `normalize`, `to_chw`" in text
    assert "| input `image` | float32 | batch, 3, 2, 2 |" in text
    assert "| output `best` | int64 | batch, 1 |" in text
    assert "| 1 | 0.1 |" in text
    (run / "preprocessing.json").unlink()
    bare = (add(restamp(run), "fp32@onnxruntime", tmp_path / "bare").parent / "README.md").read_text()
    assert "The recipe has no preprocessing" in bare


def test_the_readme_names_what_was_proven_of_an_axis_that_triton_does_not_bound() -> None:
    text = readme_of(served(inputs=TWO_AXES, ranges=BATCH | {"length": {"min": 4, "opt": 16, "max": 128}}))
    assert "proven: length 4 to 128." in text
    assert "| input `ids` | int64 | batch, -1 |" in text
    assert "takes every size" not in readme_of(served())


def test_the_readme_names_the_integers_that_openvino_cuts() -> None:
    ids, mask = (replace(spec, dtype=dtype) for spec, dtype in zip(TWO_AXES, ("int64", "int32"), strict=True))
    text = readme_of(served(runtime="openvino", inputs=(ids, mask)))
    assert "OpenVINO computes int64 in signed 32 bits" in text
    assert "look at `ids` in the client" in text
    assert "signed 32 bits" not in readme_of(served(runtime="openvino", inputs=(mask,)))
    assert "signed 32 bits" not in readme_of(served(inputs=(ids, mask)))  # onnxruntime computes all 64


def test_openvino_cuts_what_the_bundles_own_loader_refuses(tmp_path: Path) -> None:
    ov = pytest.importorskip("openvino")
    from optimizer.runtime.openvino import OpenVinoSession

    model = save_graph(
        tmp_path / "model.onnx", [helper.make_node("Add", ["x", "one"], ["y"])], {"one": [1]}, TensorProto.INT64
    )
    given = {"x": np.array([[2**33 + 7]])}
    core = ov.Core()
    assert core.compile_model(core.read_model(str(model)), "CPU")(given)["y"].tolist() == [[8]]
    with OpenVinoSession(model) as opened, pytest.raises(StageError, match="computes int64 in 32 bits"):
        opened.infer(given)


@pytest.mark.parametrize(("end", "refused"), [(4, True), (2**63 - 1, False)])
def test_openvino_outputs_of_a_bounded_size_are_refused_as_the_backend_does(
    tmp_path: Path, end: int, refused: bool
) -> None:
    pytest.importorskip("openvino")
    bounds = {"start": [0], "end": [end], "axis": [1]}
    model = save_graph(tmp_path / "model.onnx", [helper.make_node("Slice", ["x", *bounds], ["y"])], bounds)
    given = {"x": np.arange(40, dtype=np.float32).reshape(8, 5)}
    write_golden(tmp_path / GOLDEN, given, {"y": given["x"][:, :end]})

    def found() -> Rehearsal:
        return rehearse("openvino", model, tmp_path / GOLDEN, {"y": {"max_abs": 1e-3}}, threads=1, ranges=BATCH)

    if not refused:
        assert found().outputs[0].shape == ("batch", "length")
        return
    with pytest.raises(StageError, match=r"tensor 'y' is \[\?,\.\.4\] to OpenVINO: axis 1 is open and has a largest"):
        found()


def test_golden_outputs_that_do_not_come_out_in_triton_are_refused(run: Path, tmp_path: Path) -> None:
    """The twin of every test here that bundles: a model that computes something else under the backend's settings."""
    np.savez(
        run / "golden" / "fp32@onnxruntime.npz", logits=bundle_run.logits() + 1, best=bundle_run.logits().argmax(1)
    )
    with pytest.raises(
        StageError, match=r"does not compute its golden outputs: output 'logits': largest diff"
    ) as error:
        add(restamp(run), "fp32@onnxruntime", tmp_path / "out" / "b")
    assert "settings of Triton's onnxruntime backend" in str(error.value.where)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_model_that_only_our_settings_open_is_refused_with_the_reason(run: Path, tmp_path: Path) -> None:
    import onnx

    file = run / "artifacts" / "fp32@onnxruntime" / "model.onnx"
    model = onnx.load(file)
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, file)
    with pytest.raises(StageError, match=r"onnxruntime refuses the model: .*NoSuchOperator") as error:
        add(restamp(run), "fp32@onnxruntime", tmp_path / "b")
    assert "settings that the backend lacks" in str(error.value.hint)


def test_a_machine_without_the_library_says_that_nothing_was_rehearsed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else find(name, *a))
    model = add(run, "fp32@onnxruntime", tmp_path / "b")
    told = json.loads((tmp_path / "b" / "passport.json").read_text())["triton"]
    assert (told["rehearsed"], told["rehearsal"]) == (
        False,
        "not rehearsed: onnxruntime is not installed where it was written",
    )
    readme = (model.parent / "README.md").read_text()
    assert "compare the answers with its outputs before you serve" in readme
    assert "`session.qdq_matmulnbits_accuracy_level` = 1." in readme
    # The twin: what was run needs no such sentence.
    assert "before you serve" not in readme_of(served())
    assert refusals(read(model), session(model / "1" / "model.onnx")) == []


def test_what_was_not_rehearsed_is_listed_with_the_settings_that_our_loader_makes_for_the_very_graph(
    tmp_path: Path,
) -> None:
    cast = save_graph(
        tmp_path / "cast.onnx",
        [
            helper.make_node("Cast", ["x"], ["small"], to=TensorProto.FLOAT16),
            helper.make_node("Cast", ["small"], ["y"], to=TensorProto.FLOAT),
        ],
        {},
    )
    seen = not_rehearsed("onnxruntime", cast, "it is for a GPU")
    assert (seen.done, seen.said) == (False, "not rehearsed: it is for a GPU")
    text = readme_of(served(device="cuda:0"), seen)
    assert "`session.qdq_matmulnbits_accuracy_level` = 1, no `MatmulTransposeFusion`." in text
    assert not_rehearsed("openvino", cast, "it is not installed").lacking == ()  # its own sentence says what


def test_the_command_prints_the_folder_and_tells_of_preprocessing_beside(run: Path, tmp_path: Path) -> None:
    arguments = [str(run), "--variant", "int8", "-o", str(tmp_path / "b"), "--triton"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert result.stdout.strip() == str(tmp_path / "b")
    readme = tmp_path / "b" / "triton" / "README.md"
    assert result.stderr.splitlines() == [
        f"triton: rehearsed with onnxruntime {onnxruntime.__version__} on the CPU: the golden outputs come out",
        f"triton: preprocessing is the client's; see {readme}",
    ]
    assert readme.is_file()


def test_the_command_says_that_nothing_was_rehearsed(tmp_path: Path) -> None:
    run = engine_run(tmp_path / "run", [])
    arguments = [str(run), "--variant", "fp16", "--target", "tensorrt", "-o", str(tmp_path / "b"), "--triton"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False, standalone_mode=False)
    assert result.stderr.splitlines()[0] == "triton: not rehearsed: an engine executes on its GPU alone"


def test_the_written_configuration_needs_no_package_of_tritons() -> None:
    import optimizer

    sources = Path(optimizer.__file__).parent.rglob("*.py")
    assert [path for path in sources if "tritonclient" in path.read_text(encoding="utf-8")] == []
