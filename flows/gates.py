"""Whether a model is good enough: figures of reports/evaluation.json against the bounds in params.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StageError
from pipeline.params import Bound


@dataclass(frozen=True)
class Verdict:
    """One gate: a figure and its bounds."""

    name: str
    value: float | None
    min: float | None
    max: float | None

    @property
    def passed(self) -> bool:
        """Whether the figure is there and within the bounds; a figure on a bound passes."""
        if self.value is None or self.value != self.value:
            return False
        return (self.min is None or self.value >= self.min) and (self.max is None or self.value <= self.max)

    def __str__(self) -> str:
        bounds = [f"{word} {bound:g}" for word, bound in (("at least", self.min), ("at most", self.max)) if bound is not None]
        value = "unknown" if self.value is None else f"{self.value:.4f}"
        return f"{'passed' if self.passed else 'failed'}: {value}, {' and '.join(bounds)}"


def judge(gates: Mapping[str, Bound], evaluation: Mapping[str, Any]) -> list[Verdict]:
    """The verdict of each gate.

    Args:
        gates: dotted path of a figure in the evaluation, e.g. `test.f1.low`, and its bounds.
        evaluation: reports/evaluation.json.

    Raises:
        StageError: naming a path that does not lead to a figure, and the paths there are.
    """
    return [Verdict(path, _figure(path, evaluation), bound.min, bound.max) for path, bound in gates.items()]


def _figure(path: str, evaluation: Mapping[str, Any]) -> float | None:
    found: Any = evaluation
    for number, name in enumerate(path.split(".")):
        if not isinstance(found, Mapping) or name not in found:
            known = ".".join(path.split(".")[:number])
            raise _unknown(path, known, found if isinstance(found, Mapping) and number else evaluation)
        found = found[name]
    if isinstance(found, Mapping):
        raise _unknown(path, path, found)
    if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
        raise _unknown(path, "", evaluation)
    return found


def _unknown(path: str, known: str, inner: Mapping[str, Any]) -> StageError:
    there = ", ".join(_paths(inner, known and f"{known}."))
    return StageError(f"params.yaml: gates.{path}: the evaluation has no such figure; there are: {there}")


def _paths(content: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for name, value in content.items():
        if isinstance(value, Mapping):
            found += _paths(value, f"{prefix}{name}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found.append(f"{prefix}{name}")
    return found
