"""Which version may be served, which is promoted automatically, and the record of promotions.

MLflow keeps no history of its aliases, so the record is an append-only file of JSON lines; the alias `previous` is derived from it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from flows import journal, registry
from flows.materialise import workspace_lock
from flows.registry import PREVIOUS, Version
from pipeline import servable
from pipeline.champion_source import CHAMPION
from pipeline.compare import COMPARED
from pipeline.errors import StageError
from pipeline.params import Promotion
from pipeline.servable import ADVICE, OVERRIDE
from pipeline.var import var_folder

REFUSED = "refused"
"""Tag of a version that was promoted but may not be served: the reason."""

BENTO = "bento"
"""Tag of a version: the bento it was packed into."""

ROLL_BACK = "roll_back"
"""Field of the record: whether the promotion was a roll-back."""

SOMEBODY = "unknown: the alias was moved in MLflow"


def obstacle(version: Version) -> str | None:
    """Why a version may not be served; None if it may."""
    return servable.obstacle(version.number, version.tags)


def auto_reason(settings: Promotion, comparison: Mapping[str, Any] | None, version: Version) -> str | None:
    """Why a version is promoted automatically; None if it is not.

    Args:
        settings: the policy.
        comparison: reports/comparison.json; without one nothing is promoted.
        version: the challenger, which must have passed its gate. Left to a person if it was the champion before, because somebody took
            it back, or if it was compared with a version that is no longer the champion, because somebody moved the alias meanwhile.
    """
    if settings.auto == "never" or comparison is None or not version.passed or any(_is(line, version) for line in history()):
        return None
    champion = registry.holder(CHAMPION)
    if champion is None or comparison["champion"]["version"] != str(champion.number):
        return None
    least = 0.0 if settings.auto == "if_better" else -settings.margin
    gaps = {name: comparison["parts"]["test"][name]["difference"] for name in COMPARED}
    if any(gap["low"] is None or gap["low"] <= least for gap in gaps.values()):
        return None
    shown = ", ".join(f"{name} {gap['value']:+.4f} (at least {gap['low']:+.4f})" for name, gap in gaps.items())
    return f"promotion.auto: {settings.auto}; against version {comparison['champion']['version']}: {shown}"


def is_first(version: Version) -> bool:
    """Whether the version passed its gate and there never was a champion. If somebody removed the alias, it stays removed."""
    return version.passed and not history() and registry.holder(CHAMPION) is None


@contextmanager
def lock() -> Iterator[None]:
    """Lock alias and record. Hold it when you call `record`, `promote` or `roll_back`.

    Otherwise a run could record a version while somebody rolls back from it, and the next roll-back would lead to that version again.
    """
    with workspace_lock("promotions", lambda _: None):  # a wait of milliseconds: nobody needs to be told
        yield


def record(version: Version, by: str | None = None, back: bool = False) -> dict[str, Any] | None:
    """Record that a version became the champion, and set `previous` to the one before, unless that was done already.

    Args:
        version: the champion, which may be served.
        by: who or what moved the alias.
        back: whether it was a roll-back.

    Returns:
        The new line of the record; None if there was nothing to do.
    """
    lines = history()
    if lines and _is(lines[-1], version):
        return None
    before = _before(version, lines)
    if before is not None:  # first, so that a line in the record means that it was done
        registry.move(PREVIOUS, before)
    line = {
        "version": version.number,
        "previous": before.number if before else None,
        "by": by or SOMEBODY,
        "gate": version.tags.get("gate"),
        OVERRIDE: version.tags.get(OVERRIDE),
        BENTO: version.tags.get(BENTO),
        "package": version.digest,
        ROLL_BACK: back,
    }
    return journal.append(_file(), line)


def promote(version: Version) -> None:
    """Set `champion` to a version; the flow `deploy` records it. A move made in MLflow that is not recorded yet is recorded first."""
    champion = registry.holder(CHAMPION)
    if champion is not None and obstacle(champion) is None:
        record(champion)
    registry.move(CHAMPION, version)


def roll_back(by: str) -> dict[str, int | None]:
    """Set `champion` back to the version served before. Skips versions that were rolled back from, unless promoted again since.

    Args:
        by: who rolls back.

    Returns:
        Version numbers `from` (None if there was no champion) and `to`.

    Raises:
        StageError: if there is no such version, or it may not be served any more.
    """
    champion = registry.holder(CHAMPION)
    lines = history()
    rolled_back = _rolled_back(lines)
    if champion is None and lines:  # somebody removed the alias from it: do not go back there
        rolled_back.add(_key(lines[-1]))
    target = _before(champion, [line for line in lines if _key(line) not in rolled_back]) or registry.holder(PREVIOUS)
    if target is None or target == champion or (target.number, target.digest) in rolled_back:
        raise StageError(
            "there is no version to roll back to: only the champion was ever promoted, the one before is gone, or it was rolled back. "
            f"Move the alias `{CHAMPION}` of {registry.MODEL} in MLflow."
        )
    if (reason := obstacle(target)) is not None:
        raise StageError(f"cannot roll back: {reason}. {ADVICE}")
    promote(target)
    record(target, by, back=True)
    return {"from": champion.number if champion else None, "to": target.number}


def history() -> list[dict[str, Any]]:
    """The record, oldest first."""
    return journal.read(_file())


def _before(version: Version | None, lines: list[dict[str, Any]]) -> Version | None:
    """The newest other version in the record that is still registered."""
    for line in reversed(lines):
        if version is None or not _is(line, version):
            found = registry.known(line["version"])
            if found is not None and _is(line, found):  # a recreated registry counts from 1 again
                return found
    return None


def _rolled_back(lines: list[dict[str, Any]]) -> set[tuple[int, str]]:
    """Number and digest of the versions that were rolled back from and not promoted since."""
    rolled_back: set[tuple[int, str]] = set()
    for before, line in pairwise(lines):
        rolled_back.discard(_key(line))
        if line.get(ROLL_BACK):
            rolled_back.add(_key(before))
    return rolled_back


def _is(line: Mapping[str, Any], version: Version) -> bool:
    return _key(line) == (version.number, version.digest)


def _key(line: Mapping[str, Any]) -> tuple[int, str]:
    return line["version"], line["package"]


def _file() -> Path:
    return var_folder() / "promotions.jsonl"
