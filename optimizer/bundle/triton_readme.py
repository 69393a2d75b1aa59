"""The README.md of a bundle's `triton/`: how to start it, what the client must do, and what Triton does otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optimizer.bundle.triton_config import Served
from optimizer.bundle.triton_rehearsal import Rehearsal
from optimizer.results import CandidateReport

_TEXT = """# {name} in NVIDIA Triton Inference Server

`{candidate}` for Triton's `{backend}` backend; {rehearsal}.

```console
$ docker run --rm -p 8000:8000 -p 8001:8001{gpus} -v "$PWD:/models:ro" \\
      nvcr.io/nvidia/tritonserver:RELEASE-py3 tritonserver --model-repository=/models
$ curl localhost:8000/v2/models/{name}/config
```

{requests}

## What the client does

{preprocessing}

## What Triton does otherwise than the bundle's own loader

{differences}
{measured}
## This folder

The model's file is a hard link to the bundle's, where the file system has links: a copy may hold it twice, and serves.
Every file is sealed by the bundle's passport.json, config.pbtxt too: tune a copy, else `optimize check` refuses it.
"""

_RAW = "Triton hands {inputs} to the model as is. The recipe has no preprocessing: its data is what the model takes."
_STEPS = """**Preprocessing is not part of this repository.** Triton hands {inputs} to the model as is. The recipe's
steps ({steps}) stand in the bundle's preprocessing.json, and `optimizer.runtime.load(bundle).preprocess(sample)` makes
them with numpy alone (`resize` with Pillow). Without them the answers are plausible and wrong."""

_MEASURED = """
## Measured

The model alone, without Triton: {device}{threads}, one instance{each}; the machine is passport.json's.

| batch | p50, ms | items per second |
|---|---|---|
{rows}
"""

_BATCHES = (
    "It joins requests that wait to batches of up to {largest}, the largest size of the run's profile, and does not "
    "wait for more of them (max_queue_delay_microseconds is 0)."
)
_ONE = "It sends one sample at a time: the run's profile has no larger batch."
_WHOLE = "It does not batch (max_batch_size 0): a request is a whole batch and runs as it comes. "
_WHOLE_OPENVINO = _WHOLE + "Given a maximum, the OpenVINO backend computes every request at that size."
_WHOLE_OTHERS = _WHOLE + (
    "Triton's batches start at 1, and need one open axis that is the first of every input and output and no other's."
)
_INT4 = "It has no setting for 4-bit weights: its onnxruntime rounds what meets them to 8 bits."
_CUT_TYPES = frozenset({"int64", "uint64", "uint32"})  # what the bundle's own loader looks at
_OPENVINO = (
    "OpenVINO computes float32 in bfloat16 on a CPU with matrix tiles (AMX), and rounds what meets 4-bit weights to 8 "
    "bits. The backend has no setting against either, the run had."
)
_CUT = (
    "OpenVINO computes {types} in signed 32 bits, and the backend cuts a value beyond them without a word: look at "
    "{names} in the client. The bundle's own loader refuses such a value."
)
_UNNAMED = (
    "It has no class names: it counts them over all values of an output's answer to one request, in float32 or float64 "
    "(not in float16), and no output here always has {count} of those. The client takes them from the bundle's "
    "labels.json."
)
_EACH_GPU = (
    "It starts one instance on every GPU that the container is given; one on one was measured. `--gpus device=0` in "
    "place of `--gpus all` gives it one."
)
_UNSEEN = (
    "It is {rehearsal}. Send the inputs of the bundle's golden.npz and compare the answers with its outputs before you "
    "serve."
)
_LACKING = " The bundle's own loader opens this graph with settings that the backend does not have: {settings}."
_PLAN = (
    "The plan was built by TensorRT {version} for compute capability {capabilities}: take the release of the container "
    "that has this very version (NVIDIA's support matrix lists them)."
)
_HOST_CODE = (
    "Start it with `--backend-config=tensorrt,version-compatible=true`: the plan holds code, which it then runs."
)
_WARMUP = (
    "It infers a golden sample before it says that it is ready{sizes}, and does not look at the answer: `optimize "
    "check` on the bundle does."
)


def write_readme(
    served: Served, candidate: CandidateReport, receipt: Mapping[str, Any], seen: Rehearsal, steps: Mapping[str, Any]
) -> str:
    """Return its text; `steps` is the recipe's preprocessing by input."""
    inputs = ", ".join(f"`{spec.name}`" for spec in served.inputs)
    listed = "; ".join(
        f"`{name}`: {', '.join(f'`{key}`' for step in given for key in step)}" for name, given in steps.items()
    )
    return _TEXT.format(
        name=served.name,
        candidate=candidate.name,
        backend=served.backend,
        rehearsal=seen.said,
        gpus=" --gpus all" if served.on_gpu else "",
        requests=_requests(served),
        preprocessing=(_STEPS if steps else _RAW).format(inputs=inputs, steps=listed),
        differences="\n".join(f"- {sentence}" for sentence in _differences(served, candidate, receipt, seen)),
        measured=_measured(served, candidate),
    )


def _requests(served: Served) -> str:
    """Return a table of the tensors; Triton writes [1] for a tensor without axes, and beside a batch axis alone."""
    batch = ("batch",) if served.max_batch_size else ()
    rows = ["| tensor | type | shape of a request |", "|---|---|---|"]
    for kind, specs in (("input", served.inputs), ("output", served.outputs)):
        for spec in specs:
            axes = (*batch, *(served.shape_of_request(spec) or (1,)))
            rows.append(f"| {kind} `{spec.name}` | {spec.dtype} | {', '.join(map(str, axes))} |")
    return "\n".join(rows)


def _unseen(seen: Rehearsal) -> Iterator[str]:
    if not seen.done:
        lacking = _LACKING.format(settings=", ".join(seen.lacking)) if seen.lacking else ""
        yield _UNSEEN.format(rehearsal=seen.said) + lacking


def _differences(
    served: Served, candidate: CandidateReport, receipt: Mapping[str, Any], seen: Rehearsal
) -> Iterator[str]:
    yield from _unseen(seen)
    largest = served.max_batch_size
    if largest:
        yield _BATCHES.format(largest=largest) if largest > 1 else _ONE
    else:
        yield _WHOLE_OPENVINO if served.backend == "openvino" else _WHOLE_OTHERS
    if served.open_axes:
        known = [axis for axis in served.open_axes if axis in served.ranges]
        listed = ", ".join(f"{axis} {served.ranges[axis]['min']} to {served.ranges[axis]['max']}" for axis in known)
        yield f"An axis written as -1 takes every size that the model takes; proven: {listed or 'none'}."
    if served.backend == "onnxruntime" and candidate.precision.requested == "int4":
        yield _INT4
    if served.backend == "openvino":
        yield _OPENVINO
        cut = [spec for spec in served.inputs if spec.dtype in _CUT_TYPES]
        if cut:
            types = ", ".join(sorted({spec.dtype for spec in cut}))
            yield _CUT.format(types=types, names=", ".join(f"`{spec.name}`" for spec in cut))
    if served.backend == "tensorrt":
        capabilities = ", ".join(receipt.get("compute_capabilities") or ())
        yield _PLAN.format(version=receipt.get("version", "(unknown)"), capabilities=capabilities or "(unknown)")
        options = receipt.get("options")
        if isinstance(options, Mapping) and options.get("version_compatible"):
            yield _HOST_CODE
    if served.labels and not served.labelled:
        yield _UNNAMED.format(count=served.labels)
    if served.on_gpu:
        yield _EACH_GPU
    yield _WARMUP.format(sizes=f", at batch 1 and {largest}" if largest > 1 else "")


def _measured(served: Served, candidate: CandidateReport) -> str:
    if not candidate.latency_ms:
        return ""
    rates = candidate.throughput or {}
    rows = [
        f"| {batch} | {latency.p50:.3g} | {f'{rates[batch]:.4g}' if batch in rates else ''} |"
        for batch, latency in candidate.latency_ms.items()
    ]
    threads = "" if served.on_gpu else f", {served.threads} thread{'s' if served.threads > 1 else ''}"
    each = "" if served.on_gpu else ", as in config.pbtxt"
    return _MEASURED.format(device=candidate.device, threads=threads, each=each, rows="\n".join(rows))
