"""torch.compile is one graph or it is refused; what it lacks is said beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.errors import MissingToolError, StageError
from optimizer.runners import torch_compile
from optimizer.runners.torch_compile import TorchCompileRunner, TorchCompileSession
from optimizer.types import Artifact
from tests.unit.test_torch_session import FEED, folder


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    sentence = TorchCompileRunner.missing("cpu")
    assert sentence == (
        "torch.compile needs a C++ compiler, and there is no no-such-compiler here: install it, or set CXX to yours"
    )
    with pytest.raises(MissingToolError, match="needs a C"):
        TorchCompileRunner(Artifact("checkpoint", tmp_path, "0" * 64)).open()


def test_triton_needs_a_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compile.module, "missing", lambda device: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no gcc or clang here" in (TorchCompileRunner.missing("cuda:0") or "")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name == "clang" else None)
    assert TorchCompileRunner.missing("cuda:0") is None
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs triton" in (TorchCompileRunner.missing("cuda:0") or "")


def test_graphs_of_cuda_need_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="there are no CUDA graphs on the CPU"):
        TorchCompileSession(tmp_path, cuda_graphs=True)


@pytest.mark.skipif(torch_compile.missing("cpu") is not None, reason=str(torch_compile.missing("cpu")))
def test_a_graph_break_is_refused_with_its_reason(tmp_path: Path) -> None:
    """torch.compile by itself would run this branch in eager, and call itself compiled."""
    place = folder(tmp_path, "y = self.a(x)", "if y.sum() > 0:", "    return y", "return -y")
    session = TorchCompileSession(place)
    for call in (session.infer, session.bind):
        with pytest.raises(StageError, match=r"torch\.compile cannot make one graph of it: .*ranching") as caught:
            call(FEED)
        assert "\n" not in caught.value.what


def test_an_output_is_described_without_compiling(tmp_path: Path) -> None:
    session = TorchCompileSession(folder(tmp_path, "return self.a(x)"))
    assert [(spec.name, spec.shape) for spec in session.outputs] == [("y", ("batch", 2))]
    assert np.isfinite(FEED["x"]).all()


@pytest.mark.skipif(torch_compile.missing("cpu") is not None, reason=str(torch_compile.missing("cpu")))
def test_a_bound_call_computes_what_the_compiled_module_does_hooks_included(tmp_path: Path) -> None:
    """It goes past the wrapper that torch.compile puts around a module, not past the module."""
    import torch

    session = TorchCompileSession(folder(tmp_path, "return self.a(x)"))
    x = torch.from_numpy(FEED["x"].copy())
    with torch.inference_mode():
        plain = session._loaded.module(x)
        hook = session._loaded.module.register_forward_hook(lambda module, given, made: made * 3)
        call = session.bind(FEED)
        call()
        torch.testing.assert_close(session._bound_forward()(x), plain * 3)
        torch.testing.assert_close(session._fixed(x), plain * 3)
    hook.remove()
