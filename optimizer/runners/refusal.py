"""What it means when a runtime refuses an artifact while measuring."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from optimizer.errors import MeasurementError, StageError


@contextmanager
def refusal_fails_the_measurement() -> Iterator[None]:
    """Turn a backend's refusal of an artifact (StageError) into a MeasurementError with the same words."""
    try:
        yield
    except StageError as error:
        raise MeasurementError(error.what, where=error.where, hint=error.hint) from error
