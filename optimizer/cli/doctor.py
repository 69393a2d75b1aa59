"""`optimize doctor`: what this machine can build and run, what is missing, and the command that mends it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from optimizer import environment as machine
from optimizer.errors import MissingToolError, OptimizerError
from optimizer.isolated import run_isolated
from optimizer.paths import home

# Processors without one of these add pairs of uint8 x int8 products in 16 bits, which saturates.
_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_BUILD_TOOLS = ("pydantic", "PyYAML", "onnx", "onnxscript", "onnxslim", "safetensors", "Pillow", "jinja2", "rich")
_LOW_DISK_BYTES = 5_000_000_000
_LOW_MEMORY_BYTES = 4_000_000_000
_PROBE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `ok`, what was found, and the command that mends it where it is not ok."""

    name: str
    ok: bool
    found: str
    mend: str | None = None


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """Say what this machine can build and run, what is missing, and the command that mends it."""
    findings = _findings()
    able = _abilities({finding.name: finding.ok for finding in findings})
    if as_json:
        click.echo(json.dumps({"findings": [asdict(f) for f in findings], "can": able}, indent=1))
    else:
        _show(findings, able)
    if not any(able.values()):
        ctx.exit(MissingToolError.exit_code)


def _show(findings: list[Finding], able: dict[str, bool]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        click.echo(f"{'ok' if finding.ok else '--'}  {finding.name:<{width}}  {finding.found}")
        if finding.mend:
            click.echo(f"    {'':<{width}}  -> {finding.mend}")
    click.echo("\nThis machine can")
    for ability, possible in able.items():
        click.echo(f"  {'yes' if possible else 'no ':<3}  {ability}")


def _abilities(ok: dict[str, bool]) -> dict[str, bool]:
    """Return what follows from the findings for the person who asks."""
    build = ok["build tools"] and ok["onnxruntime"] and ok["store"]
    return {
        "build from a PyTorch checkpoint": build and ok["torch"],
        "build from an .onnx file": build,
        "build TensorRT-RTX engines, without a GPU": build and ok["tensorrt_rtx"],
        "build TensorRT engines": build and ok["tensorrt"] and ok["GPU"],
        "execute engines": ok["GPU"] and (ok["tensorrt"] or ok["tensorrt_rtx"]),
        "measure the target openvino": build and ok["openvino"],
        "measure the target torch_compile": build and ok["torch"] and ok["C++ compiler"],
        "measure LoadGen's scenarios": build and ok["LoadGen"],
        "serve a bundle on the CPU": ok["onnxruntime"],
    }


def _findings() -> list[Finding]:
    return [
        _cpu(),
        _memory(),
        _gpu(),
        _gpu_reader(),
        _build_tools(),
        _runtime("torch", "probe_torch", "pip install '.[cpu]'   (with an NVIDIA GPU: '.[gpu]')"),
        _runtime("onnxruntime", "probe_onnxruntime", "pip install onnxruntime   (with an NVIDIA GPU: onnxruntime-gpu)"),
        _runtime("openvino", "probe_openvino", "pip install openvino   (only for the target openvino)"),
        _compiler(),
        _runtime("LoadGen", "probe_loadgen", "pip install mlcommons-loadgen   (only for measure.scenario)"),
        _runtime("tensorrt_rtx", "probe_tensorrt_rtx", "pip install tensorrt-rtx"),
        _runtime("tensorrt", "probe_tensorrt", "pip install tensorrt   (only with an NVIDIA GPU)"),
        _store(),
    ]


def _cpu() -> Finding:
    fast = [flag for flag in _INT8_FLAGS if flag in machine.cpu_flags()]
    told = f"{machine.cpu_model()}, {machine.usable_cores()} usable cores, {platform.machine()}"
    if fast:
        return Finding("CPU", True, f"{told}, 8-bit dot products ({', '.join(fast)})")
    slow = "no 8-bit dot products: int8 may be slow here, and sums of uint8 x int8 can saturate"
    return Finding("CPU", True, f"{told}; {slow}")


def _memory() -> Finding:
    total = machine.usable_memory_bytes()
    enough = total >= _LOW_MEMORY_BYTES
    return Finding("memory", enough, f"{total / 1e9:.1f} GB", None if enough else "Exporting takes 4 GB and more.")


def _gpu() -> Finding:
    try:
        about = _probe("probe_gpu")
    except OptimizerError as error:
        return Finding("GPU", False, error.what, error.hint if isinstance(error, MissingToolError) else None)
    return Finding("GPU", True, f"{about['name']}, compute capability {about['capability']}, {about['driver']}")


def _gpu_reader() -> Finding:
    if not machine.has_nvidia_device():
        return Finding("GPU reader", True, "not needed without a GPU")
    found = machine.installed(["nvidia-ml-py"])
    if found:
        return Finding("GPU reader", True, f"nvidia-ml-py {found['nvidia-ml-py']}")
    return Finding("GPU reader", False, "reports cannot name the GPU without nvidia-ml-py", "pip install nvidia-ml-py")


def _build_tools() -> Finding:
    found = machine.installed(_BUILD_TOOLS)
    missing = [name for name in _BUILD_TOOLS if name not in found]
    if missing:
        return Finding("build tools", False, f"missing: {', '.join(missing)}", "pip install '.[cpu]'")
    return Finding("build tools", True, ", ".join(f"{name} {version}" for name, version in found.items()))


def _runtime(name: str, function: str, mend: str) -> Finding:
    """Import a runtime in a child: a broken native library may take its process with it."""
    try:
        return Finding(name, True, str(_probe(function)["found"]))
    except OptimizerError as error:
        return Finding(name, False, error.what.splitlines()[0], mend)


def _compiler() -> Finding:
    """Look for the compiler of torch.compile's code on the CPU, as Inductor chooses it."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    found = shutil.which(compiler)
    if found is not None:
        return Finding("C++ compiler", True, found)
    mend = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
    lacking = f"there is no {compiler}, which the target torch_compile needs"
    return Finding("C++ compiler", False, lacking, f"{mend}   (or export CXX=COMPILER)")


def _probe(function: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="optimizer-") as folder:
        value: dict[str, Any] = run_isolated(
            f"optimizer.cli.probes:{function}", {}, log=Path(folder, "log"), what="doctor", timeout_s=_PROBE_SECONDS
        ).value
        return value


def _store() -> Finding:
    place = home()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        return Finding("store", False, f"{place} cannot be written", "export OPTIMIZE_HOME=DIR   (a writable folder)")
    free = shutil.disk_usage(existing).free
    if free < _LOW_DISK_BYTES:
        return Finding("store", True, f"{place}, only {free / 1e9:.1f} GB free", "optimize cache prune")
    return Finding("store", True, f"{place}, {free / 1e9:.1f} GB free")
