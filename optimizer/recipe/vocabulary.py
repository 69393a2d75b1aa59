"""What a recipe may name: precisions and targets with their options, and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from optimizer.recipe.model import Section
from optimizer.stage import Stage

Stages = tuple[type[Stage], ...]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The stages behind each precision and each target, and the names of the metrics and checkpoints' endings."""

    variants: Mapping[str, Stages]
    targets: Mapping[str, Stages]
    metrics: tuple[str, ...]
    checkpoints: Mapping[str, str]  # ending -> state_dict | exported_program | onnx
    of_module: frozenset[str] = frozenset()  # targets that execute the PyTorch module itself

    @classmethod
    def of_this_package(cls) -> Vocabulary:
        """Return what this package can build and measure."""
        from optimizer.metrics import METRICS
        from optimizer.stages import CHECKPOINT_KINDS, OF_MODULE, TARGETS, VARIANTS

        return cls(VARIANTS, TARGETS, tuple(str(metric.name) for metric in METRICS), CHECKPOINT_KINDS, OF_MODULE)

    def takes(self, target: str, precision: str) -> bool:
        """Return whether a target executes a variant of this precision: one that runs the module changes none."""
        return precision == "fp32" or target not in self.of_module

    def needs_calibration(self, precision: str) -> bool:
        """Return whether a stage of this precision makes a calibration table."""
        return any(stage.produces == "calibration" for stage in self.variants[precision])

    def reads_calibration(self, precision: str) -> bool:
        """Return whether a stage of this precision reads calibration samples, be it only where there are any."""
        return self.needs_calibration(precision) or any("samples" in s.consumes for s in self.variants[precision])

    def chooses_method(self, precision: str) -> bool:
        """Return whether a stage of this precision makes a table from a table: it picks methods per tensor."""
        return any(stage.produces == "calibration" and "table" in stage.consumes for stage in self.variants[precision])

    def dependencies(self, precision: str) -> dict[str, tuple[str, Any]]:
        """Return the options of this precision that only count beside a certain value of another one."""
        return {o: needed for stage in self.variants[precision] for o, needed in stage.depends.items()}

    def needs_capability(self, precision: str) -> str | None:
        """Return the least compute capability that takes this precision; None where all do."""
        needed = [stage.needs_capability for stage in self.variants[precision] if stage.needs_capability]
        return max(needed, key=float, default=None)

    def lists_capabilities(self, target: str) -> bool:
        """Return whether this target's engines are built ahead of time, for compute capabilities that it lists."""
        return "compute_capabilities" in option_fields(self.targets[target])

    def builds_engine(self, target: str) -> bool:
        """Return whether a stage of this target builds an engine."""
        return any(stage.produces == "engine" for stage in self.targets[target])


def option_fields(stages: Stages) -> dict[str, FieldInfo]:
    """Return the fields that a recipe's author may set: those that the pipeline derives are left out."""
    return {
        name: field
        for stage in stages
        for name, field in stage.model_fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("derived"))
    }


@lru_cache(maxsize=64)
def target_options(name: str, stages: Stages) -> type[BaseModel]:
    """Return the section of a target."""
    fields: dict[str, Any] = {n: (field.annotation, field) for n, field in option_fields(stages).items()}
    return create_model(f"Target_{name}", __base__=Section, **fields)


@lru_cache(maxsize=64)
def variant_options(precision: str, stages: Stages) -> type[BaseModel]:
    """Return the section of a variant of this precision."""
    fields: dict[str, Any] = {n: (field.annotation, field) for n, field in option_fields(stages).items()}
    known = "fp32, fp16, bf16, int8, fp8 or int4; default: the variant's name"
    fields["precision"] = (str, Field(precision, description=known))
    fields["targets"] = (
        tuple[str, ...] | None,
        Field(None, min_length=1, description="names of the recipe's targets; default: all of them"),
    )
    return create_model(f"Variant_{precision}", __base__=Section, **fields)


def given_options(section: BaseModel) -> dict[str, Any]:
    """Return the options that were written, as their stage takes them; the rest keep the stage's defaults."""
    return {n: getattr(section, n) for n in section.model_fields_set if n not in ("precision", "targets")}
