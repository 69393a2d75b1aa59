from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import timeit
from pathlib import Path
from typing import Any

import bundle_run
import numpy as np
import pytest

from optimizer.bundle.choose import choose_candidate, find_candidate
from optimizer.bundle.describe import tolerance
from optimizer.bundle.write import read_report, write_bundle
from optimizer.errors import MissingToolError, OptimizerError, StageError, UsageError
from optimizer.runtime import load
from optimizer.runtime.feed import within
from optimizer.runtime.golden import Difference, compare, replay
from optimizer.runtime.passport import render, seal
from optimizer.runtime.session import Session
from optimizer.types import TensorSpec


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return bundle_run.write_run(tmp_path / "run")


@pytest.fixture
def bundle(run: Path, tmp_path: Path) -> Path:
    return write_bundle(run, "int8@onnxruntime", tmp_path / "bundle")


def reseal(folder: Path, **changes: object) -> None:
    path = folder / "passport.json"
    document = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_bytes(render(seal(document)))


def test_bundle_infers_what_the_run_measured(bundle: Path) -> None:
    with load(bundle) as deployment:
        feed = deployment.preprocess(*bundle_run.PICTURES)
        outputs = deployment.infer(feed)
        np.testing.assert_array_equal(feed["image"], bundle_run.images())
        # One matrix product in float32, by another library: the last bits of the sum may differ.
        np.testing.assert_allclose(outputs["logits"], bundle_run.logits(), rtol=1e-5, atol=1e-5)
        assert deployment.labels == ("cat", "dog", "élan")
        assert [spec.name for spec in deployment.outputs] == ["logits", "best"]
        assert all(difference.within for difference in deployment.check_golden())


def test_bundle_holds_the_named_files_and_no_pickle(bundle: Path) -> None:
    names = {path.name for path in bundle.iterdir()}
    assert names == {"model.onnx", "golden.npz", "preprocessing.json", "labels.json", "passport.json"}
    with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
        assert set(golden.files) == {"input/image", "output/logits", "output/best"}
        assert len(golden["input/image"]) >= 4


def test_passport_names_origin_accuracy_machine_and_tolerance(bundle: Path) -> None:
    passport = json.loads((bundle / "passport.json").read_text(encoding="utf-8"))
    assert passport["schema_version"] == 1
    assert passport["name"] == "tiny"
    assert passport["candidate"] == "int8@onnxruntime"
    assert passport["from"]["recipe"]["sha256"] == "0" * 64
    assert set(passport["files"]) == {"model.onnx", "golden.npz", "preprocessing.json", "labels.json"}
    assert passport["files"]["model.onnx"]["bytes"] == (bundle / "model.onnx").stat().st_size
    assert passport["profile"] == {"batch": {"min": 1, "opt": 2, "max": 8}}
    assert passport["precision"]["delivered"] == {"int8": 1.0}
    assert passport["accuracy"]["top1"]["value"] == 0.9
    assert passport["environment"]["cpu"] == "a processor"
    assert passport["runs_on"]["packages"] == {"onnxruntime": "1.31.1"}
    allowed = passport["golden"]["tolerance"]
    assert allowed["best"]["min_equal"] == 0.8
    assert "8-bit" in allowed["best"]["reason"]
    assert allowed["logits"]["max_abs"] == pytest.approx(0.1 * np.abs(bundle_run.logits()).max())
    assert "8-bit" in allowed["logits"]["reason"]


def test_two_bundles_of_one_run_are_the_same_bytes(run: Path, tmp_path: Path) -> None:
    first, second = (write_bundle(run, "fp32@onnxruntime", tmp_path / name) for name in ("a", "b"))
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_one_flipped_bit_anywhere_is_refused(bundle: Path) -> None:
    for path in sorted(bundle.iterdir()):
        whole = path.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 60)):
            changed = bytearray(whole)
            changed[position] ^= 1
            path.write_bytes(changed)
            with pytest.raises((StageError, UsageError)) as caught:
                load(bundle).close()
            assert path.name in str(caught.value)
            assert caught.value.exit_code == 4, (path.name, position)
        path.write_bytes(whole)
    load(bundle).close()


def test_changed_file_is_named_with_both_digests(bundle: Path) -> None:
    passport = json.loads((bundle / "passport.json").read_text(encoding="utf-8"))
    labels = bundle / "labels.json"
    labels.write_text(labels.read_text().replace("cat", "car"))
    from optimizer.digest import sha256_file

    with pytest.raises(StageError) as caught:
        load(bundle)
    assert "'labels.json' was changed" in str(caught.value)
    assert passport["files"]["labels.json"]["sha256"] in str(caught.value)
    assert sha256_file(labels) in str(caught.value)


def test_missing_and_extra_files_are_named_together(bundle: Path) -> None:
    (bundle / "labels.json").unlink()
    (bundle / "notes.txt").write_text("hello")
    with pytest.raises(StageError, match=r"'labels.json' is missing; 'notes.txt' is not in the passport"):
        load(bundle)


def test_passport_that_says_the_same_in_other_bytes_is_refused(bundle: Path) -> None:
    path = bundle / "passport.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))))
    with pytest.raises(StageError, match="written differently"):
        load(bundle)


def test_folder_without_passport_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is no bundle: it has no passport.json"):
        load(tmp_path)
    with pytest.raises(UsageError, match="there is no such folder"):
        load(tmp_path / "nowhere")


def test_newer_passport_is_refused(bundle: Path) -> None:
    reseal(bundle, schema_version=2)
    with pytest.raises(UsageError, match="has schema_version 2; this release reads 1"):
        load(bundle)


def test_resealed_passport_with_unknown_runtime_is_refused(bundle: Path) -> None:
    reseal(bundle, runs_on={"runtime": "abacus", "device": "cpu", "packages": {}, "compute_capabilities": None})
    with pytest.raises(UsageError, match="for the runtime 'abacus'"):
        load(bundle)


def test_verify_false_skips_the_files_but_not_the_seal(bundle: Path) -> None:
    (bundle / "labels.json").write_text('["car", "dog", "elk"]')
    load(bundle, verify=False).close()
    (bundle / "passport.json").write_text(
        (bundle / "passport.json").read_text(encoding="utf-8").replace("tiny", "Tiny")
    )
    with pytest.raises(StageError, match="seal"):
        load(bundle, verify=False)


def test_golden_check_fails_on_a_model_with_other_weights(bundle: Path) -> None:
    bundle_run.classifier(bundle / "model.onnx", bias=5.0)
    with load(bundle, verify=False) as deployment:
        differences = {difference.output: difference for difference in deployment.check_golden()}
    assert not differences["logits"].within
    assert differences["logits"].max_abs == pytest.approx(5.0, rel=1e-4)
    assert differences["best"].within  # the same constant on every logit


def test_golden_tolerances_hold_rounding_and_refuse_more() -> None:
    golden = np.linspace(-8, 8, 40, dtype=np.float32).reshape(4, 10)
    for precision, noise in (("fp32", 1e-6), ("fp16", 1e-3), ("int8", 2e-2)):
        allowed = {"y": tolerance(precision, golden)}
        assert compare({"y": golden * np.float32(1 + noise)}, {"y": golden}, allowed)[0].within
        assert not compare({"y": golden[::-1]}, {"y": golden}, allowed)[0].within
        assert not compare({"y": golden * np.float32(np.nan)}, {"y": golden}, allowed)[0].within
    with pytest.raises(StageError, match=r"output 'y' came out as \[3, 10\], golden is \[4, 10\]"):
        compare({"y": golden[:3]}, {"y": golden}, allowed)


def test_difference_of_nan_is_never_within() -> None:
    assert not Difference("y", 4, float("nan"), 1.0, allowed=1.0).within


@pytest.mark.parametrize("precision", ["fp16", "int8", "tf32"])
def test_golden_integers_may_flip_where_precision_changes_but_not_many(precision: str) -> None:
    masks = np.arange(8 * 50).reshape(8, 50) % 3
    allowed = {"mask": tolerance(precision, masks)}
    flipped = masks.copy()
    flipped.flat[:60] += 1
    few = compare({"mask": flipped}, {"mask": masks}, allowed)[0]
    assert few.within
    assert str(few) == "85.0% of the values equal, allowed at least 80%"
    flipped.flat[:90] = 7
    assert not compare({"mask": flipped}, {"mask": masks}, allowed)[0].within


def test_the_share_of_equal_integers_stands_on_the_page_of_deployment() -> None:
    share = tolerance("int8", np.arange(4))["min_equal"]
    page = Path(__file__).parents[2] / "docs" / "deployment.md"
    assert f"at least {100 * share:.0f} % of their values" in page.read_text(encoding="utf-8")


def test_golden_integers_of_float32_must_be_equal() -> None:
    whole = np.arange(4)
    allowed = {"y": tolerance("fp32", whole)}
    assert allowed["y"] == {"max_abs": 0.0, "reason": "integers must be equal"}
    assert compare({"y": whole}, {"y": whole}, allowed)[0].within
    assert not compare({"y": whole + (whole == 2)}, {"y": whole}, allowed)[0].within


def test_a_share_of_equal_booleans_is_counted() -> None:
    golden = np.ones(10, bool)
    allowed = {"y": tolerance("int8", golden)}
    assert compare({"y": np.arange(10) > 1}, {"y": golden}, allowed)[0].within
    assert not compare({"y": np.arange(10) > 2}, {"y": golden}, allowed)[0].within


class Echo(Session):
    """Gives its input back and remembers the batches."""

    inputs = outputs = (TensorSpec("x", "int64", ("n",)),)

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def infer(self, feed):  # type: ignore[no-untyped-def]
        self.batches.append(feed["x"].tolist())
        return {"x": feed["x"]}

    def bind(self, feed):  # type: ignore[no-untyped-def]
        return lambda: None


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        (None, [[0, 1, 2, 3, 4]]),
        ((1, 2), [[0, 1], [2, 3], [4]]),
        ((3, 3), [[0, 1, 2], [3, 4, 4]]),
        ((8, 16), [[0, 1, 2, 3, 4, 4, 4, 4]]),
    ],
)
def test_replay_keeps_to_the_batches_that_the_session_takes(
    sizes: tuple[int, int] | None, batches: list[list[int]]
) -> None:
    session = Echo()
    assert replay(session, {"x": np.arange(5)}, sizes)["x"].tolist() == [0, 1, 2, 3, 4]
    assert session.batches == batches


def test_unknown_candidate_names_the_nearest(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no candidate 'int8@onnxruntim', did you mean 'int8@onnxruntime'"):
        write_bundle(run, "int8@onnxruntim", tmp_path / "b")


def test_failed_and_pytorch_candidates_are_refused(tmp_path: Path) -> None:
    given = [
        bundle_run.candidate("fp32@torch"),
        bundle_run.candidate("fp32@onnxruntime"),
        bundle_run.candidate("fp16@onnxruntime", "failed", reason="out of memory"),
    ]
    run = bundle_run.write_run(tmp_path / "run", given)
    with pytest.raises(StageError, match="'fp16@onnxruntime' failed: out of memory"):
        write_bundle(run, "fp16@onnxruntime", tmp_path / "b")
    with pytest.raises(UsageError, match="runs in PyTorch and has no file to deploy"):
        write_bundle(run, "fp32@torch", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("others", "hint"),
    [
        (["fp32@onnxruntime", "int8@onnxruntime"], "bundled as:  --variant fp32 --target onnxruntime"),
        (["int8@onnxruntime", "fp16@openvino"], "This run can bundle: int8@onnxruntime, fp16@openvino"),
        ([], "This run has nothing to bundle: add a target to the recipe"),
    ],
)
def test_what_runs_in_pytorch_names_what_the_run_can_bundle(tmp_path: Path, others: list[str], hint: str) -> None:
    given = [bundle_run.candidate(name) for name in ("fp32@torch", "fp32@torch_compile", *others)]
    report = read_report(bundle_run.write_run(tmp_path / "run", given))
    for ask in (
        lambda: choose_candidate(report, "fp32", "torch_compile"),
        lambda: find_candidate(report, "fp32@torch"),
    ):
        with pytest.raises(UsageError, match="runs in PyTorch and has no file to deploy") as refused:
            ask()
        assert hint in str(refused.value.hint)
    if "fp32@onnxruntime" in others:
        assert choose_candidate(report, "fp32") == "fp32@onnxruntime"
    else:
        with pytest.raises(UsageError, match=r"'fp32@torch' runs in PyTorch"):
            choose_candidate(report, "fp32")


def test_destination_that_holds_something_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").write_text("precious")
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        write_bundle(run, "int8@onnxruntime", tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["mine"]


def test_empty_destination_is_taken(run: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    load(write_bundle(run, "int8@onnxruntime", tmp_path / "b")).close()


def test_run_that_was_changed_leaves_no_bundle_behind(run: Path, tmp_path: Path) -> None:
    bundle_run.classifier(run / "artifacts" / "int8@onnxruntime" / "model.onnx", bias=1.0)
    with pytest.raises(StageError, match="was changed since the run"):
        write_bundle(run, "int8@onnxruntime", tmp_path / "out" / "b")
    assert list((tmp_path / "out").iterdir()) == []


def test_golden_samples_too_few_or_not_finite_are_refused(run: Path, tmp_path: Path) -> None:
    def golden(**arrays: np.ndarray) -> None:
        path = run / "golden" / "int8@onnxruntime.npz"
        np.savez(path, **arrays)
        from optimizer.digest import sha256_file

        record = json.loads((run / "run.json").read_text())
        record["files"]["golden/int8@onnxruntime.npz"] = sha256_file(path)
        (run / "run.json").write_text(json.dumps(record))

    golden(logits=bundle_run.logits()[:3])
    with pytest.raises(StageError, match="hold 3, 5 samples"):
        write_bundle(run, "int8@onnxruntime", tmp_path / "b")
    golden(logits=np.full((5, 3), np.nan, np.float32))
    with pytest.raises(StageError, match="the outputs logits hold NaN or infinity"):
        write_bundle(run, "int8@onnxruntime", tmp_path / "b")


def test_engine_bundle_carries_its_receipt_and_says_what_it_needs(tmp_path: Path) -> None:
    engine = bundle_run.candidate(
        "fp16@tensorrt_rtx", "built", reason="no GPU", accuracy_runtime="rounding emulator", latency_ms=None
    )
    run = bundle_run.write_run(tmp_path / "run", [bundle_run.candidate("fp32@torch"), engine])
    bundle = write_bundle(run, "fp16@tensorrt_rtx", tmp_path / "b")
    assert {p.name for p in bundle.iterdir()} >= {"engine.plan", "engine.json"}
    assert not (bundle / "model.onnx").exists()
    passport = json.loads((bundle / "passport.json").read_text(encoding="utf-8"))
    assert passport["runs_on"]["compute_capabilities"] == ["8.6", "8.9"]
    assert passport["runs_on"]["device"] == "cuda:0"
    assert passport["runs_on"]["packages"] == {"tensorrt-rtx": "1.7.1.116"}
    assert passport["golden"]["computed_by"] == "rounding emulator"
    with pytest.raises(MissingToolError, match="executes on an NVIDIA GPU, not on the CPU"):
        load(bundle, device="cpu")


@pytest.mark.parametrize(
    ("name", "device"), [("int8@openvino", "cpu"), ("bf16@onnxruntime", "cuda:0"), ("fp16@tensorrt", "cuda:0")]
)
def test_what_was_built_and_not_executed_is_for_a_gpu_unless_openvino_runs_it(
    tmp_path: Path, name: str, device: str
) -> None:
    built = bundle_run.candidate(name, "built", reason="not here", accuracy_runtime="judge", latency_ms=None)
    run = bundle_run.write_run(tmp_path / "run", [bundle_run.candidate("fp32@torch"), built])
    bundle = write_bundle(run, name, tmp_path / "b")
    passport = json.loads((bundle / "passport.json").read_text(encoding="utf-8"))
    assert passport["runs_on"]["device"] == device


def test_external_data_travels_with_the_graph(run: Path, tmp_path: Path) -> None:
    import onnx

    from optimizer.digest import sha256_file

    folder = run / "artifacts" / "int8@onnxruntime"
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    record = json.loads((run / "run.json").read_text())
    for file in folder.iterdir():
        record["files"][file.relative_to(run).as_posix()] = sha256_file(file)
    (run / "run.json").write_text(json.dumps(record))
    bundle = write_bundle(run, "int8@onnxruntime", tmp_path / "b")
    assert (bundle / "model.onnx.data").stat().st_size > 0
    with load(bundle) as deployment:
        assert all(difference.within for difference in deployment.check_golden())
    (bundle / "model.onnx.data").write_bytes(bytes((bundle / "model.onnx.data").stat().st_size))
    with pytest.raises(StageError, match=r"'model\.onnx\.data' was changed"):
        load(bundle)


def test_fp32_engine_is_held_to_tf32(tmp_path: Path) -> None:
    given = [bundle_run.candidate("fp32@torch"), bundle_run.candidate("fp32@tensorrt", "built", accuracy_runtime="x")]
    bundle = write_bundle(bundle_run.write_run(tmp_path / "run", given), "fp32@tensorrt", tmp_path / "b")
    passport = json.loads((bundle / "passport.json").read_text(encoding="utf-8"))
    assert "TF32" in passport["golden"]["tolerance"]["logits"]["reason"]


def test_full_disk_is_a_stage_error_and_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import shutil

    def full(source: object, destination: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StageError, match="could not be written: No space left on device"):
        write_bundle(run, "int8@onnxruntime", tmp_path / "out" / "b")
    assert list((tmp_path / "out").iterdir()) == []


def test_variant_means_the_recommended_target_else_the_only_one(run: Path, tmp_path: Path) -> None:
    report = read_report(run)
    assert choose_candidate(report, "int8") == "int8@onnxruntime"
    assert choose_candidate(report, "fp32") == "fp32@onnxruntime"  # the one in torch cannot be deployed
    assert choose_candidate(report, "int8", "onnxruntime") == "int8@onnxruntime"
    with pytest.raises(UsageError, match=r"no variant 'int4', did you mean 'int8'\? \(there are: fp32, int8\)"):
        choose_candidate(report, "int4")
    with pytest.raises(UsageError, match=r"the variant 'int8' has no target 'openvino' \(it has: onnxruntime\)"):
        choose_candidate(report, "int8", "openvino")
    names = ["fp32@torch", "fp16@tensorrt", "fp16@onnxruntime"]
    two = bundle_run.write_run(tmp_path / "two", [bundle_run.candidate(name) for name in names])
    with pytest.raises(UsageError, match="stands for 2 candidates: fp16@tensorrt, fp16@onnxruntime"):
        choose_candidate(read_report(two), "fp16")


def test_unreadable_report_is_a_usage_error(run: Path, tmp_path: Path) -> None:
    (run / "report.json").write_text("{}")
    with pytest.raises(UsageError, match="Field required"):
        read_report(run)
    with pytest.raises(UsageError, match=r"is no run: it has no report.json"):
        read_report(tmp_path)


def test_preprocess_refuses_unlike_samples_and_wrong_names(bundle: Path) -> None:
    with load(bundle) as deployment:
        with pytest.raises(UsageError, match="samples of unlike shapes"):
            deployment.preprocess(bundle_run.PICTURES[0], np.zeros((4, 4, 3), np.uint8))
        with pytest.raises(UsageError, match=r"the sample has \['picture'\], the model takes \['image'\]"):
            deployment.preprocess({"picture": bundle_run.PICTURES[0]})
        with pytest.raises(UsageError, match="no sample"):
            deployment.preprocess()
        deployment.bind(deployment.preprocess({"image": bundle_run.PICTURES[0]}))()


def test_serving_imports_numpy_and_onnxruntime_alone(bundle: Path) -> None:
    script = f"""
        import sys
        import numpy as np
        from optimizer.runtime import load
        with load({str(bundle)!r}) as deployment:
            deployment.infer(deployment.preprocess(np.zeros((2, 2, 3), np.uint8)))
            deployment.check_golden()
        heavy = "torch pydantic click onnx yaml PIL rich scipy safetensors psutil jinja2 tensorrt tensorrt_rtx".split()
        print([name for name in heavy if name in sys.modules])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def pictures(batch: int) -> dict[str, np.ndarray]:
    return {"image": np.zeros((batch, 3, 2, 2), np.float32)}


@pytest.mark.parametrize("call", ["infer", "bind"])
@pytest.mark.parametrize("batch", [0, 9, 64])
def test_a_size_outside_of_the_profile_is_refused_with_axis_and_range(bundle: Path, batch: int, call: str) -> None:
    with load(bundle) as deployment:
        with pytest.raises(UsageError) as caught:
            getattr(deployment, call)(pictures(batch))
        assert f"axis 'batch' is {batch} in input 'image', outside of what was proven: 1 to 8" in caught.value.what
        assert caught.value.hint == "it takes image: float32[batch, 3, 2, 2]; batch 1 to 8"
        for allowed in (1, 8):
            assert len(deployment.infer(pictures(allowed))["logits"]) == allowed


def test_any_size_takes_it_knowingly(bundle: Path) -> None:
    with load(bundle, any_size=True) as deployment:
        assert deployment.infer(pictures(64))["logits"].shape == (64, 3)
        deployment.bind(pictures(9))()


def test_all_that_is_wrong_with_a_feed_is_one_error(bundle: Path) -> None:
    wrong = {"image": np.zeros((9, 3, 2, 2), np.float64), "other": np.zeros(1)}
    with load(bundle) as deployment, pytest.raises(UsageError) as caught:
        deployment.infer(wrong)
    for problem in ("unknown input 'other'", "is float64, not float32", "axis 'batch' is 9"):
        assert problem in caught.value.what


@pytest.mark.parametrize("image", [None, [[1.0]], np.zeros(3, np.float32), np.zeros((9, 3, 2), np.float32)])
def test_what_is_no_feed_is_refused_as_before(bundle: Path, image: object) -> None:
    feed: dict[str, Any] = {} if image is None else {"image": image}
    with load(bundle) as deployment, pytest.raises(UsageError, match="image"):
        deployment.infer(feed)


def test_the_sizes_cost_a_call_little(bundle: Path) -> None:
    """Measured: 0.3 to 0.6 us; a bound call is not touched."""
    with load(bundle) as deployment:
        feed = pictures(2)
        positions = deployment._positions
        assert positions == (("image", 0, 1, 8),)
        best = min(timeit.repeat(lambda: within(positions, feed), number=2000, repeat=7)) / 2000
        assert best < 5e-6
        assert type(deployment.bind(feed)) is type(deployment.session.bind(feed))


@pytest.mark.parametrize("call", ["infer", "bind"])
def test_a_closed_bundle_says_so_in_the_tree_of_errors(bundle: Path, call: str) -> None:
    deployment = load(bundle)
    deployment.close()
    with pytest.raises(OptimizerError, match=r"model\.onnx: the session is closed"):
        getattr(deployment, call)(pictures(2))
