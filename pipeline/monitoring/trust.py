"""Decides which user statements count: one vote per client, within limits, and none from a client caught mislabelling."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pipeline.monitoring.feedback import Statement, newest
from pipeline.params_data import FeedbackSource

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Judged:
    """`counted`: the statements that count. `set_aside`: the others, each with the reason."""

    counted: list[Statement]
    set_aside: list[tuple[Statement, str]]


def judge(statements: Iterable[Statement], source: FeedbackSource) -> Judged:
    """Sort statements into those that count and those that do not. The rules, in this order:

    1. A client that mislabelled a golden example of the champion is quarantined, even if it has changed its mind since: none of its
       statements ever count.
    2. Of each client, the first `a_day` statements within 24 hours count.
    3. On each image (or answer, if nobody kept its image) a client has one vote, its newest. The majority of the clients decides,
       and statements against it do not count; in a tie, none do. A statement without a client is a vote of its own.
    4. If there are several clients, each may contribute `max_share` of the images, or `a_day` if that is more; its newest are dropped.

    For rules 2 and 4, all statements without a client count as one client's, so that omitting the name evades neither.

    Args:
        statements: all of them, from `feedback.read`; only the newest of each client on each id can count.
        source: the limits, and the folder of the golden examples.
    """
    known, aside = golden(source.golden), []
    every = sorted(statements, key=lambda statement: statement.time)
    images = {said.id: said.image for said in every if said.image}
    caught = {said.client or said.id for said in every if said.image in known and known[said.image] != said.label}
    recent: dict[str | None, list[Statement]] = defaultdict(list)
    by_image: dict[str, dict[str, Statement]] = defaultdict(dict)
    for said in newest(every):
        within = [other for other in recent[said.client] if said.time - other.time < DAY]
        recent[said.client] = within
        if (said.client or said.id) in caught:
            aside.append((said, "its client contradicts a golden example"))
        elif len(within) >= source.a_day:
            aside.append((said, f"its client made more than {source.a_day} statements within 24 hours"))
        else:
            within.append(said)
            votes = by_image[said.image or images.get(said.id) or said.id]
            voter = f"client {said.client}" if said.client else f"answer {said.id}"
            if voter in votes:
                aside.append((votes[voter], "the same client made a newer statement about this image"))
            votes[voter] = said
    counted = []
    for votes in by_image.values():
        tally = Counter(said.label for said in votes.values())
        equal = len(set(tally.values())) < len(tally)
        winner = tally.most_common(1)[0][0]
        for said in votes.values():
            if equal:
                aside.append((said, "clients are evenly divided on this image"))
            elif said.label != winner:
                aside.append((said, f"most clients say that this image is {winner}"))
            else:
                counted.append(said)
    return _bounded(counted, aside, source)


def golden(folder: Path) -> dict[str, str]:
    """SHA-256 of each golden example of a package -> its label; empty if the folder has no golden.json."""
    if not (folder / "golden.json").is_file():
        return {}
    listed: Mapping[str, Mapping[str, str]] = json.loads((folder / "golden.json").read_text())
    return {hashlib.sha256((folder / name).read_bytes()).hexdigest(): about["label"] for name, about in listed.items()}


def _bounded(counted: list[Statement], aside: list[tuple[Statement, str]], source: FeedbackSource) -> Judged:
    of_client = Counter(said.client for said in counted)
    most = {
        client: max(source.a_day, int(source.max_share / (1 - source.max_share) * (len(counted) - number)))
        for client, number in of_client.items()
    }
    taken: Counter[str | None] = Counter()
    kept = []
    for said in sorted(counted, key=lambda statement: statement.time):
        taken[said.client] += 1
        if len(of_client) > 1 and taken[said.client] > most[said.client]:
            aside.append((said, f"its client would contribute more than {source.max_share:.0%} of all"))
        else:
            kept.append(said)
    return Judged(kept, aside)
