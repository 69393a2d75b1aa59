"""doctor says what is here, what is missing and what mends it; a broken library cannot take it down."""

import json
import sys

import pytest
from click.testing import CliRunner

from optimizer import environment
from optimizer.cli import doctor
from optimizer.errors import MissingToolError, StageError
from optimizer.runners import torch_compile


@pytest.fixture
def probes(monkeypatch, tmp_path):
    """Answers of the child processes; a test changes what it needs."""
    answers = {
        "probe_gpu": MissingToolError("this machine has no NVIDIA GPU"),
        "probe_torch": {"found": "2.13.0+cpu, no CUDA"},
        "probe_onnxruntime": {"found": "1.31.1, CPUExecutionProvider"},
        "probe_openvino": {"found": "2026.4"},
        "probe_loadgen": {"found": "mlcommons-loadgen 6.0"},
        "probe_tensorrt_rtx": {"found": "1.7.1, builds for compute capabilities 8.6"},
        "probe_tensorrt": MissingToolError("not installed"),
    }

    def answer(function):
        if isinstance(answers[function], Exception):
            raise answers[function]
        return answers[function]

    monkeypatch.setattr(doctor, "_probe", answer)
    monkeypatch.setenv("OPTIMIZE_HOME", str(tmp_path / "artifacts"))
    return answers


def run(*arguments):
    return CliRunner().invoke(doctor.command, arguments, catch_exceptions=False)


def test_cpu_machine_can_build_but_not_execute_engines(probes):
    result = run()
    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines()]
    assert "-> pip install tensorrt   (only with an NVIDIA GPU)" in lines
    assert "yes  build from a PyTorch checkpoint" in lines
    assert "yes  build TensorRT-RTX engines, without a GPU" in lines
    assert "no   execute engines" in lines


def test_json_holds_the_same(probes):
    document = json.loads(run("--json").output)
    found = {entry["name"]: entry for entry in document["findings"]}
    assert found["onnxruntime"] == {
        "name": "onnxruntime",
        "ok": True,
        "found": "1.31.1, CPUExecutionProvider",
        "mend": None,
    }
    assert document["can"]["serve a bundle on the CPU"] is True
    assert document["can"]["build TensorRT engines"] is False


def test_gpu_host_executes_engines(probes, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    probes["probe_gpu"] = {"name": "L4", "capability": "8.9", "driver": "driver for CUDA 13.0"}
    probes["probe_tensorrt"] = {"found": "11.1"}
    can = json.loads(run("--json").output)["can"]
    assert all(can.values())


def test_crashing_library_is_a_finding(probes):
    probes["probe_torch"] = StageError("the child process crashed with SIGSEGV", hint="log: x")
    result = run()
    assert result.exit_code == 0
    assert "--  torch         the child process crashed with SIGSEGV" in result.output
    assert "no   build from a PyTorch checkpoint" in result.output


def test_machine_that_can_do_nothing_exits_3(probes):
    for name in probes:
        probes[name] = MissingToolError("not installed")
    assert run().exit_code == 3


@pytest.mark.parametrize(
    ("probe", "ability", "mend"),
    [
        ("probe_openvino", "measure the target openvino", "pip install openvino"),
        ("probe_loadgen", "measure LoadGen's scenarios", "pip install mlcommons-loadgen"),
    ],
)
def test_what_a_recipe_can_ask_for_and_is_not_here_is_told(probes, probe, ability, mend):
    assert json.loads(run("--json").output)["can"][ability] is True
    probes[probe] = MissingToolError("not installed")
    output = run().output
    assert f"no   {ability}" in output
    assert f"-> {mend}" in output


def test_compiler_is_looked_for_as_torch_compile_does(probes, monkeypatch):
    for compiler, found in (("no-such-compiler", False), (sys.executable, True)):
        monkeypatch.setenv("CXX", compiler)
        assert (torch_compile.missing("cpu") is None) is found
        assert json.loads(run("--json").output)["can"]["measure the target torch_compile"] is found
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "there is no no-such-compiler, which the target torch_compile needs" in run().output


def test_probes_of_openvino_and_loadgen_tell_their_versions(monkeypatch):
    assert doctor._probe("probe_openvino")["found"][0].isdigit()
    assert doctor._probe("probe_loadgen")["found"].startswith("mlcommons-loadgen ")


def test_missing_build_tools_are_named(probes, monkeypatch):
    monkeypatch.setattr(environment, "installed", lambda names: {n: "1" for n in names if n != "onnxslim"})
    result = run()
    assert "missing: onnxslim" in result.output
    assert "no   build from an .onnx file" in result.output
    assert "yes  serve a bundle on the CPU" in result.output


def test_store_that_cannot_be_written_says_so(probes, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    result = run()
    assert "artifacts cannot be written" in result.output
    assert "OPTIMIZE_HOME" in result.output


def test_processor_without_8_bit_dot_products_is_warned_of(probes, monkeypatch):
    monkeypatch.setattr(environment, "cpu_flags", lambda: frozenset({"avx2"}))
    assert "can saturate" in run().output


def test_probe_of_a_real_runtime_and_of_a_missing_one(monkeypatch, tmp_path):
    assert "CPUExecutionProvider" in doctor._probe("probe_onnxruntime")["found"]
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10 is missing')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(MissingToolError, match=r"is broken: libnvinfer\.so\.10 is missing"):
        doctor._probe("probe_tensorrt")


def test_rtx_probe_lists_its_capabilities():
    assert "8.6, 8.9" in doctor._probe("probe_tensorrt_rtx")["found"]
