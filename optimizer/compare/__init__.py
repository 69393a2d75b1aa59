"""One report against another: what got worse, as far as the samples can tell."""

from __future__ import annotations

from optimizer.compare.reports import compare
from optimizer.compare.result import Check, Comparison

__all__ = ["Check", "Comparison", "compare"]
