"""What the file of a model holds of its intervals."""

from collections.abc import Mapping
from typing import Any

import torch

from agl_sc.core.evaluation.intervals import LEVELS

OF_INTERVALS = "intervals."
"""Before the names of the tensors."""


def interval_shapes(tensors: Mapping[str, torch.Tensor], n_predicted: int) -> dict[str, tuple[int, ...]]:
    """What the tensors of intervals have to measure; nothing of a model that has none."""
    found = {name: tensor for name, tensor in tensors.items() if name.startswith(OF_INTERVALS)}
    if not found:
        return {}

    def n_levels(name: str) -> int:
        tensor = found[f"{OF_INTERVALS}{name}"]
        return min(max(1, tensor.shape[-1] if tensor.ndim else 1), len(LEVELS))

    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("offset", "slope", "least"), (n_predicted,))
    shapes |= {name: (n_predicted, n_levels(name)) for name in ("donors", "spots") if f"{OF_INTERVALS}{name}" in found}
    if f"{OF_INTERVALS}sections" in found:
        tensor = found[f"{OF_INTERVALS}sections"]
        shapes["sections"] = (max(1, tensor.shape[0] if tensor.ndim else 1), n_predicted, len(LEVELS))
    return {f"{OF_INTERVALS}{name}": shape for name, shape in shapes.items()}


def is_intervals(value: Any) -> bool:
    """Whether this is what a card says of intervals."""
    if not isinstance(value, dict) or value.get("by") not in ("patient", "section", "block", "spot"):
        return False
    patients = value.get("patients")
    if not isinstance(patients, list) or not all(map(_is_patient, patients)):
        return False
    counts = [value.get("n_donors"), value.get("n_spots", 0)]
    return all(type(each) is int and each >= 0 for each in counts) and _is_coverage(value.get("donors"))


def _is_patient(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    sections, coverage = value.get("sections"), value.get("coverage") or []
    is_named = isinstance(sections, list) and all(isinstance(name, str) for name in sections)
    return (
        is_named and _is_coverage(coverage) and len(coverage) > 0 and all(len(row) == len(LEVELS) for row in coverage)
    )


def _is_coverage(value: Any) -> bool:
    """Rows of shares, one per level."""
    return isinstance(value, list) and all(
        isinstance(row, list) and all(type(each) in (int, float) and 0 <= each <= 1 for each in row) for row in value
    )
