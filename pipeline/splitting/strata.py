"""Stratified assignment of whole groups, so that each part gets its share of every stratum."""

import hashlib
import itertools

import numpy as np
import pandas as pd

FINE = 300
"""Kinds of groups, smallest first, that take part in the final exchange: larger ones would not bring the shares closer."""


def composition(group: np.ndarray, table: pd.DataFrame, counted: np.ndarray) -> np.ndarray:
    """Count what each group holds, at three levels: each pair of label and generator, each label, all images.

    Without the last two, many small generators could each be met to within an image and still add up to a part without fakes.

    Args:
        group: int (rows,), number 0.. of each row's group.
        table: with columns label and generator.
        counted: bool (rows,); the other rows count only at the level of label and generator.

    Returns:
        int32 (groups, strata).
    """
    groups = int(group.max(initial=-1)) + 1
    levels = [
        (table.groupby(["label", "generator"]).ngroup().to_numpy(), np.ones(len(table), bool)),
        (pd.factorize(table["label"], sort=True)[0], counted),
        (np.zeros(len(table), np.int64), counted),
    ]
    counts = []
    for stratum, rows in levels:
        width = int(stratum.max(initial=-1)) + 1
        found = np.bincount(group[rows] * width + stratum[rows], minlength=groups * width)
        counts.append(found.reshape(groups, width).astype(np.int32))
    return np.concatenate(counts, axis=1)


def assign(counts: np.ndarray, names: np.ndarray, placed: np.ndarray, shares: np.ndarray, seed: int) -> np.ndarray:
    """Assign each group to a part, so that the sum of squared distances from the parts' shares of each stratum is small.

    Groups of equal composition are dealt out in the order of a hash of their names, large groups first; the one or two left over go where
    most is missing. Then groups are moved or exchanged as long as that brings the parts closer to their shares: with FINE or fewer kinds
    of groups, no move of one group and no exchange of two would bring them any closer.

    Args:
        counts: int (groups, strata): what each group holds.
        names: str (groups,).
        placed: int (groups,): the part of groups that have one already, -1 for the others.
        shares: float (parts,), which sum to 1.
        seed: of the hash.

    Returns:
        int (groups,): the part of each group, those of `placed` unchanged.
    """
    parts = len(shares)
    missing = np.outer(shares, counts.sum(axis=0))
    for part in range(parts):
        missing[part] -= counts[placed == part].sum(axis=0)
    free = np.flatnonzero(placed < 0)
    if not len(free):
        return placed
    kinds, kind = np.unique(counts[free], axis=0, return_inverse=True)
    amounts = np.bincount(kind)
    given = np.zeros((len(kinds), parts), np.int64)
    for number in np.argsort(-kinds[:, -1], kind="stable"):
        given[number] = _give(kinds[number], amounts[number], missing, shares)
        missing -= np.outer(given[number], kinds[number])
    _settle(kinds, given, missing)
    digests = np.array([int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) for name in names[free]], np.uint64)
    result = placed.copy()
    result[free[np.lexsort((digests, kind))]] = np.repeat(np.tile(np.arange(parts), len(kinds)), given.ravel())
    return result


def _give(kind: np.ndarray, amount: int, missing: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """How many of `amount` groups of one composition each part gets."""
    need = np.maximum(missing @ kind, 0)
    given = np.floor(amount * (need / need.sum() if need.any() else shares)).astype(np.int64)
    for _ in range(amount - given.sum()):
        given[np.argmax((missing - np.outer(given, kind)) @ kind)] += 1
    return given


def _settle(kinds: np.ndarray, given: np.ndarray, missing: np.ndarray) -> None:
    """Exchange two groups between two parts, in place, best exchange first, until none brings the parts closer to their shares."""
    small = np.argsort(kinds[:, -1], kind="stable")[:FINE]
    pieces = np.concatenate([np.zeros((1, kinds.shape[1])), kinds[small]])  # row 0 is an empty group: exchanged with it, a group just moves
    there = np.concatenate([np.full((1, given.shape[1]), np.iinfo(np.int32).max), given[small]])
    squares = (pieces**2).sum(axis=1)
    distance = squares[:, None] + squares - 2 * pieces @ pieces.T
    while True:
        best = (-1e-6, 0, 0, 0, 0)
        for one, two in itertools.combinations(range(len(missing)), 2):
            pull = pieces @ (missing[one] - missing[two])
            cost = distance + pull[:, None] - pull
            cost[there[:, one] == 0] = np.inf
            cost[:, there[:, two] == 0] = np.inf
            exchange = divmod(int(cost.argmin()), len(pieces))
            best = min(best, (cost[exchange], one, two, *exchange))
        _, one, two, out, back = best
        if out == back:
            break
        there[[out, back], [one, two]] -= 1
        there[[out, back], [two, one]] += 1
        missing[one] += pieces[out] - pieces[back]
        missing[two] -= pieces[out] - pieces[back]
    given[small] = there[1:]
