"""Which GPU a command means."""

from __future__ import annotations

import os

import pytest

from optimizer import cli
from optimizer.errors import UsageError
from optimizer.pipeline import plan


def test_engines_bound_to_a_gpu_are_built_on_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "device_fingerprint", lambda device: f"fingerprint of {device}")
    assert {plan._bound(device) for device in ("cpu", "cuda", "cuda:0")} == {"fingerprint of cuda:0"}
    with pytest.raises(UsageError, match="not on cuda:1") as caught:
        plan._bound("cuda:1")
    assert (caught.value.hint or "").startswith("CUDA_VISIBLE_DEVICES=1 optimize ... --device cuda:0")


@pytest.mark.parametrize(("before", "after"), [(None, "PCI_BUS_ID"), ("FASTEST_FIRST", "FASTEST_FIRST")])
def test_gpus_are_numbered_as_nvidia_smi_does(monkeypatch: pytest.MonkeyPatch, before: str | None, after: str) -> None:
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    if before:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", before)
    monkeypatch.setattr(cli, "main", lambda **options: 0)
    with pytest.raises(SystemExit):
        cli.entry()
    assert os.environ["CUDA_DEVICE_ORDER"] == after
    os.environ.pop("CUDA_DEVICE_ORDER")
