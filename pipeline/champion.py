"""The detector that serves, replaced at runtime when another package becomes the champion."""

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.champion_source import CHALLENGER, CHAMPION, Pinned, Registry, Source, UnavailableError, UntilPromoted, Version
from pipeline.detector import Detector
from pipeline.face_weights import chosen_detector
from pipeline.package import STARTER
from pipeline.tracking import MODEL, tracking_uri, without_secrets
from pipeline.var import var_folder

log = logging.getLogger(__name__)

RETRY_SECONDS = 30.0
"""Wait before a refused package is tried again, unless the alias moves."""


@dataclass(frozen=True)
class Served:
    """A version and its detector, which change together."""

    version: str
    detector: Detector


@dataclass(frozen=True)
class Refusal:
    """A version that could not be served, why, and when to try again (monotonic seconds)."""

    version: Version
    reason: str
    until: float


class Champion:
    """The detector that serves, and the thread that checks about once a second whether another one should.

    `served` is replaced in one assignment: a request that took the old one finishes with it. A package that cannot be served is
    refused, and the old one stays.

    Attributes:
        served: None until the first package is loaded.
        now: the full version of `served`: a recreated registry gives the same numbers again.
        trouble: why the wanted version is not served, and what to do: (message, hint). None if all is well.
    """

    alias = CHAMPION

    def __init__(self, source: Source, seconds: float = 1.0, faces: Path | None = None) -> None:
        """`faces` is the face detector to use instead of the package's own, see pipeline.face_weights."""
        self.source, self.seconds, self.faces = source, seconds, faces
        self.served: Served | None = None
        self.trouble: tuple[str, str] | None = ("The model is being loaded", "Try again in a few seconds.")
        self.now: Version | None = None
        self._refusal: Refusal | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=self.alias, daemon=True)

    def start(self) -> None:
        """Serve the wanted version, or the last one if that is unavailable, and start the thread.

        Returns after the first package is loaded: a worker that replaces another one must not take requests before.
        """
        self._guarded(self.refresh)
        if self.served is None:
            self._guarded(self._go_on)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; the loaded detector stays."""
        self._end.set()
        self._thread.join(timeout=5)

    def refresh(self) -> None:
        """Serve the wanted version, if it is not served already."""
        try:
            wanted = self.source.wanted()
        except UnavailableError as error:
            self._tell(str(error), error.hint)
            return
        if wanted is None:
            self._without()
        elif wanted == self.now or self._serve(wanted):
            self.trouble = None

    def _without(self) -> None:
        """No version has the alias."""
        self._tell(
            f"No model is promoted: no version of `{MODEL}` has the alias `{CHAMPION}`", "Run `make run`, or set the alias in MLflow."
        )

    def _follow(self) -> None:
        while not self._end.wait(self.seconds):
            self._guarded(self.refresh)

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception:  # this thread must survive any error
            log.exception("following the %s failed", self.alias)

    def _go_on(self) -> None:
        """After a restart, if the wanted version is unavailable: serve the one served before."""
        last = self.source.last()
        if last:
            self._serve(last)

    def _serve(self, version: Version) -> bool:
        refusal = self._refusal
        if refusal is None or refusal.version != version or time.monotonic() > refusal.until:
            log.info("%s: loading version %s", self.alias, version.number)
            try:
                detector = Detector.load(self.source.fetch(version), faces=self.faces)
                detector.check()  # also a warm-up, which the first request would otherwise wait for
            except Exception as error:  # libraries raise anything on a broken package; the service must go on
                # MLflow's errors name its address with the password, and /readyz shows the reason to anyone.
                refusal = self._refusal = Refusal(version, without_secrets(str(error)), time.monotonic() + RETRY_SECONDS)
            else:
                self.served, self.now, self._refusal = Served(version.number, detector), version, None
                log.info("%s: serving version %s with %s", self.alias, version.number, detector.runtime.name)
                self.source.keep(version)
                return True
        hint = f"Promote another version, or fix the cause: this one is retried every {RETRY_SECONDS:g} seconds."
        self._tell(f"Version {version.number} was refused: {refusal.reason}", hint)
        return False

    def _tell(self, message: str, hint: str) -> None:
        if self.trouble != (message, hint):
            self.trouble = (message, hint)
            still = f"; version {self.served.version} is still served" if self.served else ""
            log.warning("%s: %s%s. %s", self.alias, message, still, hint)


class Challenger(Champion):
    """The detector that is tried out beside the champion: the version with the alias `challenger`, unless that is the champion itself."""

    alias = CHALLENGER

    def __init__(self, champion: Champion, var: Path) -> None:
        """Follow MLflow, whatever `champion` follows; downloads are kept in `var`."""
        super().__init__(Registry(tracking_uri(), var / CHALLENGER, CHALLENGER), faces=champion.faces)
        self.champion, self.trouble = champion, None

    def start(self) -> None:
        """Start the thread without waiting for a model: the champion serves meanwhile."""
        self._thread.start()

    def refresh(self) -> None:
        """Load the version with the alias; drop it when it loses the alias or becomes champion."""
        super().refresh()
        if self.now is not None and self.now == self.champion.now:
            self._without()

    def _serve(self, version: Version) -> bool:
        if version != self.champion.now:
            return super()._serve(version)
        self._without()
        return True

    def _without(self) -> None:
        self.served = self.now = self.trouble = None


def champion(bundled: Path | None = None, version: str = "") -> Champion:
    """What this process serves: UNMASK_PACKAGE, else the package inside the bento, else the champion in MLflow.

    Until there has been a champion, the starter is served, if it is there.

    Args:
        bundled: folder of the package that was packed with the service, if there is one.
        version: its version, if that was packed too.
    """
    faces = chosen_detector()
    source: Source
    if pinned := os.environ.get("UNMASK_PACKAGE"):
        source = Pinned(Path(pinned), STARTER.name if Path(pinned).resolve() == STARTER.resolve() else "")
    elif bundled:
        source = Pinned(bundled, version)
    else:
        source = Registry(tracking_uri(), var_folder() / "served")
        if STARTER.is_dir():
            source = UntilPromoted(source, STARTER)
    return Champion(source, faces=faces)
