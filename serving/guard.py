"""Stops a canary if the challenger fails, or if its shares of verdicts differ from the champion's over the same period.

The hash of an image assigns it to one of the two, as if at random, so their shares of verdicts differ only by chance or because the
models differ.
"""

from collections import Counter
from math import sqrt
from statistics import NormalDist
from typing import get_args

from pipeline.detector import Verdict

VERDICTS = get_args(Verdict)
FAILURES, FAILURE_RATE = 3, 0.01
"""A canary is stopped after this many failures, if they exceed this share of the challenger's images."""

MOST = 200_000
"""Images counted at most. A version does not change while it is served, so its faults show before that."""


class Guard:
    """Counts the verdicts of champion and challenger on distinct images, and compares them.

    For each verdict a two-sided z-test (Agresti and Caffo, The American Statistician 2000) of whether the two shares differ by more than
    `shift`. It runs when both have `least` images, and again each time that number has doubled; first at half of `alpha`, then at a
    quarter and so on, divided among the verdicts: `alpha` bounds the chance that a challenger within `shift` of the champion is ever
    stopped, however long its canary lasts.
    """

    def __init__(self, shift: float, alpha: float, least: int) -> None:
        """`shift` is a difference of shares, 0 to 1."""
        self.shift, self.failures = shift, 0
        self.champion, self.challenger = Counter[str](), Counter[str]()
        self._level, self._next = alpha, least
        self._seen: set[float] = set()

    def note(self, lot: float, by_challenger: bool, verdict: str) -> None:
        """Count an answer, once per image: a repeated image is recognised by its lot."""
        if lot not in self._seen and len(self._seen) < MOST:
            self._seen.add(lot)
            (self.challenger if by_challenger else self.champion)[verdict] += 1

    def failed(self) -> None:
        """Count an image on which the challenger failed."""
        self.failures += 1

    def check(self) -> str | None:
        """Why the canary should end, as the end of a sentence about the challenger; None if it may go on."""
        tried = self.challenger.total() + self.failures
        if self.failures >= FAILURES and self.failures > FAILURE_RATE * tried:
            return f"failed on {self.failures} of {tried} pictures"
        fewest = min(self.challenger.total(), self.champion.total())
        if fewest < self._next:
            return None
        self._next, self._level = 2 * fewest, self._level / 2
        z = NormalDist().inv_cdf(1 - self._level / len(VERDICTS) / 2)
        for verdict in VERDICTS:
            ours, theirs = ((counts[verdict] + 1) / (counts.total() + 2) for counts in (self.challenger, self.champion))
            variance = ours * (1 - ours) / (self.challenger.total() + 2) + theirs * (1 - theirs) / (self.champion.total() + 2)
            if abs(ours - theirs) - z * sqrt(variance) > self.shift:
                return (
                    f"calls {self.challenger[verdict]} of {self.challenger.total()} pictures {verdict}, and the champion "
                    f"{self.champion[verdict]} of {self.champion.total()}: the shares differ by more than {self.shift:g}"
                )
        return None
