"""The layer table of every compute capability of an engine: a build for several prints that of the first alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimizer.errors import StageError
from optimizer.graph.engine_log import Line, table


def tables(
    builder: Any, network: Any, configs: Mapping[str, Any], lines: list[Line]
) -> dict[str, list[dict[str, Any]]]:
    """Return the layer table of each capability, from one more build for each; what is built is thrown away.

    `configs` has a builder configuration for each that names it alone and is else that of the engine; `lines` are what
    the builder's logger keeps, and lose what these builds add. Call it after the engine itself was built: a build that
    failed leaves its target behind for the next one in the process (measured: TensorRT-RTX 1.7, after 7.5).
    Raises: StageError when the engine was built and one of its capabilities by itself is not.
    """
    found = {}
    for capability, config in configs.items():
        mark = len(lines)
        built = builder.build_serialized_network(network, config)
        said, lines[mark:] = lines[mark:], []
        if built is None:
            reason = next((text for severity, text in said if severity.endswith("ERROR")), "it logged no reason")
            raise StageError(
                f"the engine was built, but not for compute capability {capability} by itself: "
                f"{' '.join(reason.split())[:300]}",
                hint="Leave it out of compute_capabilities.",
            )
        found[capability] = table(said)
    return found
