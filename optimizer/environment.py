"""What this machine is: versions, processor, memory and GPU, without importing anything heavy."""

from __future__ import annotations

import functools
import itertools
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.digest import sha256_json
from optimizer.errors import MissingToolError

if TYPE_CHECKING:
    from optimizer.results import Environment, Gpu

# Distributions whose versions stand in a report, where they are installed.
PACKAGES = (
    "optimizer",
    "numpy",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "onnxslim",
    "tensorrt",
    "tensorrt_rtx",
    "safetensors",
    "Pillow",
    "scikit-learn",
    "nvidia-ml-py",
    "openvino",
    "mlcommons-loadgen",
)
# One module that several distributions provide: any of them answers for the first name.
_ALTERNATIVES: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime-gpu",),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12"),
}
_CGROUP = Path("/sys/fs/cgroup")
_DEVICE_NODES = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # the last is WSL's
_NO_GPU_HINT = "Use --device cpu, or run on a GPU host."
_UNLIMITED = 1 << 60  # cgroup 1 writes a huge number for "no limit"


def environment(threads: int = 1, affinity: Sequence[int] = (), device: str = "cuda:0") -> Environment:
    """Return the machine and the versions behind every number of a report; of several GPUs the one of `device`."""
    from optimizer.results import Environment

    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_model(),
        cores=usable_cores(),
        memory_bytes=usable_memory_bytes(),
        gpu=gpu(_index(device)),
        packages=installed(PACKAGES),
        threads=threads,
        affinity=tuple(affinity),
    )


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each distribution that is installed; the others are left out."""
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version is not None}


def versions(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each distribution.

    Raises: MissingToolError, naming all that are missing and the command that mends it.
    """
    wanted = tuple(names)
    found: dict[str, str] = {}
    for name in wanted:
        version = next((v for d in (name, *_ALTERNATIVES.get(name, ())) if (v := _version(d)) is not None), None)
        if version is not None:
            found[name] = version
    missing = [name for name in wanted if name not in found]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise MissingToolError(f"{', '.join(missing)} {verb} not installed", hint=f"pip install {' '.join(missing)}")
    return found


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def cpu_model() -> str:
    """Return the processor's name as it names itself."""
    fields = _cpuinfo()
    for key in ("model name", "Hardware", "cpu model"):
        if fields.get(key):
            return " ".join(fields[key].split())
    return platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the processor's feature flags by the kernel's names, e.g. `avx512_vnni`; empty where it names none."""
    fields = _cpuinfo()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


@functools.cache
def _cpuinfo() -> Mapping[str, str]:
    """Return the first processor's fields."""
    fields: dict[str, str] = {}
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def usable_cores() -> int:
    """Return how many processors this process may use: its affinity, and no more than its cgroup's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [allowed]
    for group in cgroups("cpu"):
        limit = (_text(group / "cpu.max") or "").split()
        if not limit:
            limit = [_text(group / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        if len(limit) == 2 and limit[0].isdigit() and limit[1].isdigit():
            quotas.append(max(1, math.ceil(int(limit[0]) / int(limit[1]))))
    return min(quotas)


def check_threads(threads: int, where: str = "measure.threads") -> None:
    """Refuse more threads than processors that this process may be pinned to; where nothing can be pinned, none.

    A container's quota of processor time does not count: it slows, and refuses nothing. Raises: MissingToolError.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    if threads > allowed:
        asked = f"{threads} threads are" if threads > 1 else "1 thread is"
        raise MissingToolError(
            f"{asked} asked for and this process may use {allowed} processor{'s' if allowed != 1 else ''}",
            where=where,
            hint=f"Write threads: {allowed}, or build where there are {threads}.",
        )


def usable_memory_bytes() -> int:
    """Return the memory of the machine, or of the cgroup where that is less."""
    found = re.search(r"^MemTotal:\s+(\d+) kB", _text(Path("/proc/meminfo")) or "", re.MULTILINE)
    total = int(found.group(1)) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [total]
    for group in cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = (_text(group / name) or "").strip()
            if text.isdigit() and int(text) < _UNLIMITED:
                limits.append(int(text))
    return min(limits)


def cgroups(controller: str) -> list[Path]:
    """Return this process's cgroup folders, innermost first: a parent's limit binds as well."""
    found: list[Path] = []
    for line in (_text(Path("/proc/self/cgroup")) or "").splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            root = _CGROUP
        elif controller in controllers.split(","):
            root = _CGROUP / controllers if (_CGROUP / controllers).is_dir() else _CGROUP / controller
        else:
            continue
        inner = root / name.lstrip("/")
        found += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(root)]
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def has_nvidia_device() -> bool:
    """Is there a device node of NVIDIA's driver? Cheap: loads nothing."""
    return any(Path(node).exists() for node in _DEVICE_NODES)


def gpu(index: int = 0) -> Gpu | None:
    """Return the GPU that CUDA calls `cuda:index`, or None where there is none or nvidia-ml-py is not installed."""
    if not has_nvidia_device():
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        return _describe(pynvml, visible(pynvml, index))
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def visible(nvml: Any, index: int) -> Any:
    """Return NVML's handle of `cuda:index`: CUDA_VISIBLE_DEVICES renumbers, NVML does not."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return nvml.nvmlDeviceGetHandleByIndex(index)
    # CUDA stops at the first name that is none, e.g. -1.
    names = [*itertools.takewhile(lambda name: name and name != "-1", (name.strip() for name in chosen.split(",")))]
    if index >= len(names):
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)
    name = names[index]
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)


def _describe(nvml: Any, handle: Any) -> Gpu:
    from optimizer.results import Gpu

    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        name=_word(nvml.nvmlDeviceGetName(handle)),
        compute_capability=f"{major}.{minor}",
        driver=_word(nvml.nvmlSystemGetDriverVersion()),
        memory_bytes=_memory_bytes(nvml, handle),
    )


def _memory_bytes(nvml: Any, handle: Any) -> int:
    """Return the GPU's memory; where it has none of its own (GB10, Jetson), the machine's, which it shares."""
    try:
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError_NotSupported:
        return usable_memory_bytes()


def _word(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def device_fingerprint(device: str) -> str | None:
    """Return what a device-bound artifact depends on: the GPU and its driver; None on the CPU.

    Raises: MissingToolError when `device` names a GPU that is not seen here.
    """
    if device == "cpu":
        return None
    found = gpu(_index(device))
    if found is None:
        hint = "pip install nvidia-ml-py" if has_nvidia_device() and _version("nvidia-ml-py") is None else _NO_GPU_HINT
        raise MissingToolError(no_gpu(), where=f"device {device}", hint=hint)
    return f"{found.name} ({found.compute_capability}), driver {found.driver}"


def _index(device: str) -> int:
    """Return N of `cuda:N`; `cuda` and `cpu` stand for the first GPU."""
    return int(device.partition(":")[2] or 0)


def no_gpu() -> str:
    """Return the sentence that says why no GPU is seen."""
    if not has_nvidia_device():
        return "this machine has no NVIDIA GPU"
    if _version("nvidia-ml-py") is None:
        return "this machine has an NVIDIA device, but nvidia-ml-py, which reads it, is not installed"
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:
        return f"CUDA_VISIBLE_DEVICES={os.environ['CUDA_VISIBLE_DEVICES']} leaves no GPU of that number"
    return "this machine has an NVIDIA device, but its driver does not answer (does nvidia-smi work?)"


def machine_fingerprint() -> str:
    """Return a digest of what latency depends on besides the software: processor, cores, GPU, kernel.

    Memory is left out: the kernel reports a few pages more or less after each boot.
    """
    found = gpu()
    return sha256_json(
        {
            "cpu": cpu_model(),
            "cores": usable_cores(),
            "gpu": found.model_dump() if found else None,
            "kernel": platform.release(),
            "machine": platform.machine(),
        }
    )
