"""Which statements of users count: one vote a client, within bounds, and none of a client that was caught."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pipeline.monitoring.feedback import Statement
from pipeline.params_data import FeedbackSource

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Judged:
    """`counted`: the statements that count. `set_aside`: the others, each with the reason."""

    counted: list[Statement]
    set_aside: list[tuple[Statement, str]]


def judge(statements: Iterable[Statement], source: FeedbackSource) -> Judged:
    """Sort statements into those that count and those that do not. The rules, in this order:

    1. A client that called a golden example of the champion what it is not is in quarantine: nothing that it ever said counts.
    2. Of one client the first `a_day` statements within 24 hours count.
    3. Statements on one image (those without one are on their answer's): a client has one vote, its newest; the majority of the clients
       decides, and statements against it do not count. Where the votes are equal none of them does. A statement without a client is a
       vote by itself.
    4. Where there are several clients, one brings at most `max_share` of the images, but never fewer than `a_day`: its newest go.

    For rules 2 and 4 all statements without a client are one client's, so that leaving the name out gets around neither.

    Args:
        statements: the newest of each id.
        source: the bounds, and the folder of the golden examples.
    """
    known, aside = golden(source.golden), []
    ordered = sorted(statements, key=lambda statement: statement.time)
    caught = {said.client or said.id for said in ordered if said.image in known and known[said.image] != said.label}
    recent: dict[str | None, list[Statement]] = defaultdict(list)
    by_image: dict[str, dict[str, Statement]] = defaultdict(dict)
    for said in ordered:
        within = [other for other in recent[said.client] if said.time - other.time < DAY]
        recent[said.client] = within
        if (said.client or said.id) in caught:
            aside.append((said, "its client contradicts a golden example"))
        elif len(within) >= source.a_day:
            aside.append((said, f"its client said more than {source.a_day} things within 24 hours"))
        else:
            within.append(said)
            votes = by_image[said.image or said.id]
            voter = f"client {said.client}" if said.client else f"answer {said.id}"
            if voter in votes:
                aside.append((votes[voter], "the same client said something newer of this image"))
            votes[voter] = said
    counted = []
    for votes in by_image.values():
        tally = Counter(said.label for said in votes.values())
        equal = len(set(tally.values())) < len(tally)
        winner = tally.most_common(1)[0][0]
        for said in votes.values():
            if equal:
                aside.append((said, "clients disagree on this image, as many on either side"))
            elif said.label != winner:
                aside.append((said, f"most clients say that this image is {winner}"))
            else:
                counted.append(said)
    return _bounded(counted, aside, source)


def golden(folder: Path) -> dict[str, str]:
    """SHA-256 of each golden example of a package -> its label; empty where there is no such folder."""
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
            aside.append((said, f"its client would bring more than {source.max_share:.0%} of all"))
        else:
            kept.append(said)
    return Judged(kept, aside)
