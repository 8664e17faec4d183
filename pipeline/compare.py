"""Challenger against champion on the same images: `python -m pipeline.compare CHAMPION --version N` writes reports/comparison.json and .md.

Each package judges the images as it would when served, with its own threshold; both share the same bootstrap draws over groups, so that
what makes an image hard for both cancels out of the difference.

After a redrawn split, the champion may have been trained on images that are test images now. That favours only the champion.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline import manifest
from pipeline.evaluation.metrics import figures, group_weights, judge_difference, reported
from pipeline.labels import LABEL2ID
from pipeline.lineage import lineage
from pipeline.manifest import UNSEEN
from pipeline.package import GOLDEN, PACKAGE
from pipeline.params import Params
from pipeline.staging import write

if TYPE_CHECKING:
    from pipeline.detector import Detector

REPORT = Path("reports/comparison.json")
TABLE = Path("reports/comparison.md")
COMPARED = ("f1", "auc")


def run(params: Params, champion: Path, version: str, challenger: Path = PACKAGE) -> dict[str, Any]:
    """Compare two packages on the test part, the part `unseen` if there is one, and the golden examples of both.

    Args:
        champion: folder of the champion's package.
        version: its number, for the report.
        challenger: folder of the other package.

    Returns:
        What reports/comparison.json holds: for each part `n`, `groups`, and for each figure both values and the difference.

    Raises:
        PackageError: if a package is incomplete or changed.
        ManifestError: if there are no parts.
    """
    from pipeline.detector import Detector

    new, old = Detector.load(challenger), Detector.load(champion)
    parts = {name: part for name, part in manifest.read_parts().items() if name in ("test", UNSEEN)} | {GOLDEN: golden(new, old)}
    settings = params.evaluate
    result = {
        "challenger": {"package": new.package.digest, "made": new.package.meta.created},
        "champion": {"version": version, "package": old.package.digest, "made": old.package.meta.created},
        "splits_md5": lineage()["splits_md5"],
        "parts": {name: _part(new, old, part, settings.bootstrap, settings.seed) for name, part in parts.items()},
    }
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    TABLE.write_text(table(result) + "\n")
    write(REPORT, (json.dumps(result, indent=2) + "\n").encode())
    return result


def difference(
    labels: np.ndarray, groups: np.ndarray, new: tuple[np.ndarray, float], old: tuple[np.ndarray, float], draws: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Paired bootstrap over groups of the differences new - old.

    Args:
        labels: int (n,), 1 for fake.
        groups: (n,), images of one group are drawn together.
        new, old: probabilities of fake, float (n,), and the threshold at or above which an image counts as fake.
        draws: bootstrap samples.
        seed: of the draws.

    Returns:
        f1 and auc, each `challenger`, `champion` and `difference`: {value, low, high} with the 95% interval; null where undefined.
    """
    values = [figures(labels, *side) for side in (new, old)]
    gaps = judge_difference(labels, new, old, group_weights(groups, draws, seed))
    return {
        name: {"challenger": reported(values[0][name][0]), "champion": reported(values[1][name][0]), "difference": gaps[name]}
        for name in COMPARED
    }


def golden(*detectors: "Detector") -> pd.DataFrame:
    """The golden examples of several packages, each picture once and as its own group: path, label, group."""
    examples = {path.name: (path, example.label) for detector in detectors for path, example in detector.package.golden.items()}
    return pd.DataFrame([{"path": str(path), "label": label, "group": name} for name, (path, label) in sorted(examples.items())])


def table(result: Mapping[str, Any]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        f"| images | figure | this version | champion, version {result['champion']['version']} | difference | 95% interval |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, part in result["parts"].items():
        for figure in COMPARED:
            found = part[figure]
            gap = found["difference"]
            shown = [_short(found["challenger"]), _short(found["champion"]), _short(gap["value"], "+")]
            lines.append(
                f"| {name}, {part['n']} | {figure} | {' | '.join(shown)} | {_short(gap['low'], '+')} to {_short(gap['high'], '+')} |"
            )
    return "\n".join(lines)


def _part(new: "Detector", old: "Detector", rows: pd.DataFrame, draws: int, seed: int) -> dict[str, Any]:
    labels, groups = rows["label"].map(LABEL2ID).to_numpy(), rows["group"].to_numpy()
    judged = [(_probabilities(detector, rows["path"].tolist()), detector.package.meta.thresholds.f1) for detector in (new, old)]
    return {"n": len(rows), "groups": len(set(groups)), **difference(labels, groups, judged[0], judged[1], draws, seed)}


def _probabilities(detector: "Detector", paths: list[str]) -> np.ndarray:
    from pipeline.score import predict

    answers = predict(detector, paths, f"compare: package of {detector.package.meta.created}")
    return np.array([answer.probability_fake for answer in answers])


def _short(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.4f}"


def main() -> None:
    """Command line."""
    from pipeline.cli import checked

    parser = argparse.ArgumentParser(prog="python -m pipeline.compare", description="Compare the package of this run with the champion's.")
    parser.add_argument("champion", type=Path, help="folder of the champion's package")
    parser.add_argument("--version", default="unknown", help="its version, for the report")
    parser.add_argument("--challenger", type=Path, default=PACKAGE, help=f"folder of the other package (default {PACKAGE})")
    arguments = parser.parse_args()
    checked(lambda params: run(params, arguments.champion, arguments.version, arguments.challenger))


if __name__ == "__main__":
    main()
