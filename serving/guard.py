"""When a canary ends by itself: the challenger fails, or its shares of verdicts differ from the champion's over the same period.

Each picture goes to either of the two by its hash, as if by lot, so that their shares of verdicts may differ by what the models are and
by luck, and by nothing else.
"""

from collections import Counter
from math import sqrt
from statistics import NormalDist
from typing import get_args

from pipeline.detector import Verdict

VERDICTS = get_args(Verdict)
FAILURES, FAILURE_RATE = 3, 0.01
"""A canary ends at this many failures, where they are a larger share of the challenger's pictures than that."""

MOST = 200_000
"""Pictures that are counted. A version does not change while it is served: what is wrong with it shows before."""


class Guard:
    """Counts the verdicts of champion and challenger on different pictures, and compares them.

    For each verdict a two-sided z-test (Agresti and Caffo, The American Statistician 2000) of whether the two shares differ by more than
    `shift`. It is made when both have `least` pictures, and whenever that number has doubled; the first time at half of `alpha`, then at
    a quarter and so on, shared among the verdicts: `alpha` bounds the chance that a challenger which is no further from the champion than
    `shift` is ever stopped, however long its canary lasts.
    """

    def __init__(self, shift: float, alpha: float, least: int) -> None:
        """`shift` is a difference of shares, 0 to 1."""
        self.shift, self.failures = shift, 0
        self.champion, self.challenger = Counter[str](), Counter[str]()
        self._level, self._next = alpha, least
        self._seen: set[float] = set()

    def note(self, lot: float, by_challenger: bool, verdict: str) -> None:
        """Count an answer; a picture that comes again, which its lot tells, is no news."""
        if lot not in self._seen and len(self._seen) < MOST:
            self._seen.add(lot)
            (self.challenger if by_challenger else self.champion)[verdict] += 1

    def failed(self) -> None:
        """Count a picture on which the challenger failed."""
        self.failures += 1

    def wrong(self) -> str | None:
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
