"""Tries a challenger on a share of the images: as a shadow, which clients do not see, or as a canary, which answers.

The bytes of an image decide which model gets it: the same image always goes to the same model, whoever sends it and however often, and
no state is kept. Images are not divided by client: clients send different images, so a difference between clients would look like one
between the models.
"""

import hashlib
import json
import logging
import os
import queue
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pipeline.champion import Challenger, Champion, Served
from pipeline.champion_source import STOPPED, Version
from pipeline.images import decode
from pipeline.monitoring.predictions import PredictionLog
from pipeline.staging import write
from serving.batches import Batches
from serving.guard import Guard
from serving.settings import Settings

if TYPE_CHECKING:
    from serving.metrics import Metrics

WAITING = 16
"""Images that may wait for the shadow; more are dropped and counted."""

HASHED = 65_536
"""Leading bytes of a file that its lot is computed from."""

log = logging.getLogger("pipeline.trial")


@dataclass(frozen=True)
class Picture:
    """A file and its lot, a number from 0 to 1 computed from its bytes. `data` is empty if the challenger does not judge it."""

    data: bytes
    lot: float


class Trial:
    """What UNMASK_CHALLENGER asks for, in one worker. With `off` there is no thread, and the champion gets every image."""

    def __init__(self, settings: Settings, champion: Champion, record: PredictionLog, metrics: "Metrics") -> None:
        self.settings, self.mode, self.share = settings, settings.challenger, settings.challenger_share
        self.champion, self.challenger = champion, Challenger(champion, settings.var)
        self.batches = Batches()
        """Separate, so that the champion's images do not wait for the challenger."""
        self._record, self._metrics = record, metrics
        self._guarded: tuple[Version, Guard] | None = None
        self._untold: tuple[Version, str] | None = None
        """The version whose canary was stopped, and why, if the file that tells all workers could not be written."""
        self._shadowed: queue.Queue[tuple[str, Served, bytes]] = queue.Queue(WAITING)

    def start(self) -> None:
        """Start following the alias."""
        if self.mode != "off":
            self.challenger.start()
        if self.mode == "shadow":
            threading.Thread(target=self._judge_on, name="shadow", daemon=True).start()

    def stop(self) -> None:
        """Stop following the alias."""
        if self.mode != "off":
            self.challenger.stop()

    def stop_reason(self) -> str | None:
        """Why the canary of the current challenger was stopped; None if it was not."""
        now = self.challenger.now
        if self.mode != "canary" or now is None:
            return None
        if self._untold is not None and self._untold[0] == now:
            return self._untold[1]
        file = self.settings.var / STOPPED
        try:
            found = json.loads(file.read_text())
            same = (found["version"], found["made"]) == (now.number, now.made)
            return str(found["why"]) if same else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{file} cannot be read: {error!r}. Remove it to try the challenger"

    def picture(self, data: bytes) -> Picture:
        """A file with its lot."""
        if self.mode == "off":
            return Picture(b"", 1.0)
        lot = int.from_bytes(hashlib.sha256(data[:HASHED]).digest()[:4]) / 2**32
        return Picture(data if self.challenger_for(Picture(data, lot)) else b"", lot)

    def challenger_for(self, picture: Picture) -> Served | None:
        """The challenger, if this image is in its share."""
        served = self.challenger.served
        return served if served is not None and picture.data and picture.lot < self.share and self.stop_reason() is None else None

    def canary_for(self, picture: Picture) -> Served | None:
        """The challenger, if it answers for this image."""
        return self.challenger_for(picture) if self.mode == "canary" else None

    def record_answer(self, picture: Picture, id: str, served: Served, verdict: str) -> None:
        """After an answer: count it for the canary, or queue its image for the shadow."""
        if self.mode == "canary" and self.challenger.served is not None:
            by_challenger = served is self.challenger.served
            if self.stop_reason() is not None:
                self._guarded = None  # if it starts again, it starts with a clean record
            elif by_challenger or served is self.champion.served:  # not a model that was replaced meanwhile
                self._guard().note(picture.lot, by_challenger, verdict)
                self._check_guard()
        elif self.mode == "shadow" and (challenger := self.challenger_for(picture)) is not None:
            try:
                self._shadowed.put_nowait((id, challenger, picture.data))
            except queue.Full:
                self._metrics.shadowed("dropped")

    def failed(self, error: Exception) -> None:
        """Record that the challenger failed; the champion answers instead."""
        log.warning("the challenger failed, and the champion answers instead: %r", error)
        self._metrics.canary_failed()
        self._guard().failed()
        self._check_guard()

    def _guard(self) -> Guard:
        now = self.challenger.now
        if self._guarded is None or (now is not None and self._guarded[0] != now):
            settings = self.settings
            self._guarded = now or Version(""), Guard(settings.canary_shift, settings.canary_alpha, settings.canary_least)
        return self._guarded[1]

    def _check_guard(self) -> None:
        now = self.challenger.now
        if now is None or self.stop_reason() is not None or (reason := self._guard().check()) is None:
            return
        why = f"version {now.number} {reason}"
        self._guarded = None
        log.error("the canary has ended, and the champion answers everything: %s", why)
        self._metrics.canary_ended()
        content = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "version": now.number, "made": now.made, "why": why}
        try:
            write(self.settings.var / STOPPED, json.dumps(content).encode())
        except OSError as error:
            self._untold = now, why
            log.warning("other workers were not told: %s", error)

    def _judge_on(self) -> None:
        with suppress(OSError):  # of this thread only, if the system has thread priorities
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while True:
            id, challenger, data = self._shadowed.get()
            try:
                found = challenger.detector.predict([decode(data, self.settings.images)])[0]
            except Exception:  # the answer was sent long ago
                log.exception("the challenger failed in the shadow")
                self._metrics.shadowed("failed")
            else:
                self._record.shadow(id=id, package=challenger.detector.package.digest, version=challenger.version, prediction=found)
                self._metrics.shadowed("judged")
            del challenger, data
