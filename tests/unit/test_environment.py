"""What the machine is, read without loading anything heavy."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from optimizer import environment as env
from optimizer.errors import MissingToolError
from optimizer.results import Environment


class NvmlError(Exception):
    pass


class NotSupportedError(NvmlError):
    pass


def nvml(**changes):
    """A stand-in of pynvml with two GPUs."""
    names = {0: "H200", 1: "L4", "GPU-abc": "A10"}
    fake = SimpleNamespace(
        NVMLError=NvmlError,
        NVMLError_NotSupported=NotSupportedError,
        NVML_ERROR_NOT_FOUND=6,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetHandleByUUID=lambda u: u,
        nvmlDeviceGetName=lambda h: names[h].encode(),
        nvmlDeviceGetCudaComputeCapability=lambda _: (9, 0),
        nvmlSystemGetDriverVersion=lambda: "570.1",
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(total=1 << 37),
    )
    vars(fake).update(changes)
    return fake


@pytest.fixture
def gpu_host(monkeypatch):
    def install(module):
        monkeypatch.setattr(env, "has_nvidia_device", lambda: True)
        monkeypatch.setitem(sys.modules, "pynvml", module)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return install


def test_environment_is_complete():
    found = env.environment(threads=2, affinity=[0, 1])
    assert isinstance(found, Environment)
    assert found.threads == 2
    assert found.affinity == (0, 1)
    assert found.cpu
    assert found.cores >= 1
    assert found.memory_bytes > 1 << 28
    assert found.packages["numpy"]


def test_importing_environment_loads_nothing_heavy():
    code = (
        "import sys, optimizer.environment as e; e.versions(['numpy']); e.gpu(); e.machine_fingerprint();"
        "print(sorted({'numpy', 'torch', 'onnx', 'pydantic', 'pynvml'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_versions_name_everything_missing_and_the_command():
    with pytest.raises(MissingToolError) as caught:
        env.versions(["numpy", "no-such-tool", "nor-this"])
    assert str(caught.value) == "no-such-tool, nor-this are not installed\n  pip install no-such-tool nor-this"


def test_onnxruntime_gpu_answers_for_onnxruntime(monkeypatch):
    monkeypatch.setattr(env, "_version", {"onnxruntime-gpu": "1.20"}.get)
    assert env.versions(["onnxruntime"]) == {"onnxruntime": "1.20"}


def test_no_device_node_means_no_gpu(monkeypatch):
    monkeypatch.setattr(env, "_DEVICE_NODES", ())
    assert env.gpu() is None
    assert env.no_gpu() == "this machine has no NVIDIA GPU"
    with pytest.raises(MissingToolError, match="device cuda:0: this machine has no NVIDIA GPU"):
        env.device_fingerprint("cuda:0")


def test_cpu_has_no_device_fingerprint():
    assert env.device_fingerprint("cpu") is None


def test_gpu_is_read_through_nvml(gpu_host):
    gpu_host(nvml())
    found = env.gpu()
    assert found.model_dump() == {
        "name": "H200",
        "compute_capability": "9.0",
        "driver": "570.1",
        "memory_bytes": 1 << 37,
    }
    assert env.device_fingerprint("cuda:1") == "L4 (9.0), driver 570.1"


@pytest.mark.parametrize(("chosen", "name"), [("1,0", "L4"), ("GPU-abc", "A10")])
def test_visible_devices_renumber(gpu_host, monkeypatch, chosen, name):
    gpu_host(nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert env.gpu().name == name


def test_names_after_one_that_is_none_are_hidden(gpu_host, monkeypatch):
    gpu_host(nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,-1,0")
    assert env.gpu(0).name == "L4"
    assert env.gpu(1) is None


def test_report_describes_the_gpu_that_was_measured(gpu_host):
    gpu_host(nvml())
    assert env.environment(device="cuda:1").gpu.name == "L4"
    assert env.environment().gpu.name == "H200"


def test_gpu_that_shares_the_machines_memory_has_that_much(gpu_host):
    def refuse(handle):
        raise NotSupportedError

    gpu_host(nvml(nvmlDeviceGetMemoryInfo=refuse))
    assert env.gpu().memory_bytes == env.usable_memory_bytes()


def test_hidden_gpu_is_no_gpu(gpu_host, monkeypatch):
    gpu_host(nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert env.gpu() is None
    monkeypatch.setattr(env, "_version", {"nvidia-ml-py": "12"}.get)
    assert env.no_gpu().startswith("CUDA_VISIBLE_DEVICES= leaves no GPU")


def test_silent_driver_is_no_gpu_and_says_so(gpu_host, monkeypatch):
    def broken():
        raise NvmlError

    gpu_host(nvml(nvmlInit=broken))
    monkeypatch.setattr(env, "_version", {"nvidia-ml-py": "12"}.get)
    assert env.gpu() is None
    assert "driver does not answer" in env.no_gpu()


def test_missing_reader_is_named(monkeypatch):
    monkeypatch.setattr(env, "has_nvidia_device", lambda: True)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(env, "_version", {}.get)
    assert env.gpu() is None
    assert "nvidia-ml-py, which reads it, is not installed" in env.no_gpu()
    with pytest.raises(MissingToolError, match="pip install nvidia-ml-py"):
        env.device_fingerprint("cuda:0")


def test_cgroup_limits_bind_cores_and_memory(monkeypatch, tmp_path):
    inner = tmp_path / "slice/job"
    inner.mkdir(parents=True)
    (inner / "cpu.max").write_text("max 100000\n")
    (inner.parent / "cpu.max").write_text("50000 100000\n")
    (inner / "memory.max").write_text("1000000\n")
    monkeypatch.setattr(env, "cgroups", lambda _: [inner, inner.parent])
    assert env.usable_cores() == 1
    assert env.usable_memory_bytes() == 1_000_000


def test_unlimited_cgroup_leaves_the_machines_memory(monkeypatch, tmp_path):
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tmp_path / "cpu.cfs_quota_us").write_text("-1\n")
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(env, "cgroups", lambda _: [])
    bare = env.usable_memory_bytes(), env.usable_cores()
    monkeypatch.setattr(env, "cgroups", lambda _: [tmp_path])
    assert (env.usable_memory_bytes(), env.usable_cores()) == bare


def test_machine_fingerprint_changes_with_the_processor(monkeypatch):
    before = env.machine_fingerprint()
    assert before == env.machine_fingerprint()
    monkeypatch.setattr(env, "cpu_model", lambda: "another")
    assert env.machine_fingerprint() != before


@pytest.mark.parametrize(
    ("threads", "allowed", "said"),
    [
        (9, 2, "9 threads are asked for and this process may use 2 processors"),
        (2, 1, "2 threads are asked for and this process may use 1 processor"),
    ],
)
def test_more_threads_than_processors_are_refused_in_one_wording(threads, allowed, said, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    with pytest.raises(MissingToolError) as refused:
        env.check_threads(threads)
    hint = f"Write threads: {allowed}, or build where there are {threads}."
    assert refused.value.render() == f"measure.threads: {said}\n  {hint}"
    with pytest.raises(MissingToolError, match=r"^model\.onnx: "):
        env.check_threads(threads, where="model.onnx")


def test_as_many_threads_as_processors_are_not_and_none_where_nothing_is_pinned(monkeypatch):
    """The twin."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 7}, raising=False)
    env.check_threads(2)
    monkeypatch.delattr(os, "sched_getaffinity")
    env.check_threads(999)
