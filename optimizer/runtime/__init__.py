"""Open a bundle or an artifact and infer, with numpy and one backend."""

from optimizer.runtime.bundle import Deployment, load

__all__ = ["Deployment", "load"]
