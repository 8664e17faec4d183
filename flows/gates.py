"""Quality gates: figures of reports/evaluation.json against the bounds in params.yaml."""

from collections.abc import Iterator, Mapping
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
        """Whether the figure exists and is within the bounds, inclusive."""
        if self.value is None:
            return False
        return (self.min is None or self.value >= self.min) and (self.max is None or self.value <= self.max)

    def __str__(self) -> str:
        bounds = [f"{word} {bound:g}" for word, bound in (("at least", self.min), ("at most", self.max)) if bound is not None]
        value = "not defined (needs both classes and enough groups)" if self.value is None else f"{self.value:.4f}"
        return f"{'passed' if self.passed else 'failed'}: {value}, {' and '.join(bounds)}"


def judge(gates: Mapping[str, Bound], evaluation: Mapping[str, Any]) -> list[Verdict]:
    """The verdict of each gate.

    Args:
        gates: dotted path of a figure in the evaluation -> its bounds, e.g. `test.f1.low`, `robustness.jpeg40.drop`,
            `slices.generator.swap.auc.low`. The path of a figure with an interval means its value: `calibration.ece`.
        evaluation: reports/evaluation.json.

    Raises:
        StageError: if a path does not lead to a figure, with the paths that come close.
    """
    there = dict(_figures(evaluation))
    verdicts = []
    for path, bound in gates.items():
        if path not in there:
            raise StageError(f"params.yaml: gates.{path}: the evaluation has no such figure; there are: {', '.join(_near(path, there))}")
        verdicts.append(Verdict(path, there[path], bound.min, bound.max))
    return verdicts


def _figures(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """Dotted path and value of each figure; one with an interval appears under its own name and as value, low and high."""
    for name, found in content.items():
        path = f"{prefix}{name}"
        if isinstance(found, Mapping):
            if "value" in found:
                yield path, found["value"]
            yield from _figures(found, f"{path}.")
        elif name == "slices":
            yield from _figures({f"{part['column']}.{part['value']}": part for part in found}, f"{path}.")
        elif found is None or (isinstance(found, int | float) and not isinstance(found, bool)):
            yield path, found


def _near(path: str, there: Mapping[str, Any]) -> list[str]:
    """The paths that share the longest prefix with the wrong one; if none does, those of the test part and the short ones."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        start = ".".join(parts[:length]) + "."
        if near := [name for name in there if name.startswith(start)]:
            return near
    return [name for name in there if name.count(".") < 2 or name.startswith("test.")]
