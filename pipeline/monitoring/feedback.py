"""What users say about an answer: the service writes it, the data source `feedback` reads it.

A folder with `feedback.jsonl`, one statement per line (fields: Statement), and `images/<sha256>` for the images that users agreed to
have kept. Lines are appended: a user who changes their mind adds a line with the same id, and the newest line of a client on an id
counts. Only `forget` and `expire` delete. pipeline/monitoring/trust.py decides which statements count.
"""

import errno
import fcntl
import hashlib
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import StageError
from pipeline.staging import write

FOLDER = Path("feedback")
"""Inside UNMASK_VAR."""

FILE = "feedback.jsonl"
IMAGES = "images"
LONGEST_COMMENT = 1000
"""Characters."""

COUNT_SECONDS = 60.0


class Statement(BaseModel):
    """One user's statement on one answer of the service."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(description="of the answer", max_length=64)
    time: AwareDatetime
    label: Literal["real", "fake"] = Field(description="what the user says the image is")
    version: str = Field(description="model version that answered")
    verdict: str
    probability_fake: float = Field(ge=0, le=1)
    image: str | None = Field(None, description="sha256 of the image, if the user agreed to have it kept", pattern="^[0-9a-f]{64}$")
    client: str | None = Field(None, description="who says so, as the service's rate limit names clients", max_length=64)
    comment: str | None = Field(None, description="in the user's own words", max_length=LONGEST_COMMENT)


def record(
    folder: Path,
    *,
    id: str,
    label: Literal["real", "fake"],
    version: str,
    verdict: str,
    probability_fake: float,
    image: bytes | None = None,
    client: str | None = None,
    comment: str | None = None,
) -> Statement:
    """Append a statement, and keep the image if one is given. Safe while other processes write to the same folder.

    Args:
        folder: created, for its owner alone, if it does not exist.
        image: the uploaded file, only with the user's consent; it is stored under its hash, so an upload cannot choose a path.

    Raises:
        pydantic.ValidationError: if a value is not allowed; nothing is written then.
        OSError: if the folder cannot be written to.
    """
    digest = hashlib.sha256(image).hexdigest() if image is not None else None
    statement = Statement(
        id=id,
        time=datetime.now(UTC),
        label=label,
        version=version,
        verdict=verdict,
        probability_fake=probability_fake,
        image=digest,
        client=client,
        comment=comment,
    )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # pictures of people, for no other user of this machine
    (folder / IMAGES).mkdir(exist_ok=True)
    with _locked(folder):
        new = digest is not None and not (folder / IMAGES / digest).exists()
        if image is not None and digest is not None and new:
            write(folder / IMAGES / digest, image)
        try:
            _append(folder / FILE, statement.model_dump_json().encode() + b"\n")
        except OSError:
            if digest is not None and new:  # an image that no statement names would stay for ever
                (folder / IMAGES / digest).unlink()
            raise
    return statement


def _append(path: Path, line: bytes) -> None:
    """Append a whole line or nothing. A line cut short by a crash or a full disk was never confirmed, and is removed."""
    with path.open("a+b", buffering=0) as file:
        whole = file.seek(0, os.SEEK_END)
        file.seek(max(whole - 1, 0))
        if whole and file.read(1) != b"\n":
            whole = path.read_bytes().rfind(b"\n") + 1
            file.truncate(whole)
        if file.write(line) < len(line):
            file.truncate(whole)
            raise OSError(errno.ENOSPC, "the disk is full", str(path))


def sizes(folder: Path) -> Counter[str | None]:
    """Bytes of the statements and kept images of each client. An image of several counts as the first one's, one of nobody as None's."""
    images = folder / IMAGES
    with os.scandir(images) if images.is_dir() else nullcontext(()) as entries:
        kept = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
    found: Counter[str | None] = Counter()
    for line in (folder / FILE).read_bytes().splitlines(keepends=True) if (folder / FILE).is_file() else ():
        try:
            said = Statement.model_validate_json(line)
        except ValidationError:  # whoever reads the statements is told of it
            found[None] += len(line)
        else:
            found[said.client] += len(line) + kept.pop(said.image or "", 0)
    found[None] += sum(kept.values())
    return found


class Room:
    """How much feedback a folder may still take, in all and from one client.

    Counting 100,000 images takes a second or more, so they are counted at most once a minute, when others' changes are noticed too; in
    between, what is taken is added.
    """

    def __init__(self, folder: Path, most: float, share: float = 1.0) -> None:
        """`most` is in bytes, `share` what one client may have of it."""
        self.folder, self.most, self.share = folder, most, share
        self._sizes: Counter[str | None] = Counter()
        self._counted, self._lock = -math.inf, threading.Lock()

    def take(self, client: str, more: int) -> None:
        """Raises OSError if so many bytes do not fit any more. Safe to call from several threads."""
        with self._lock:
            if time.monotonic() - self._counted > COUNT_SECONDS:
                self._sizes, self._counted = sizes(self.folder), time.monotonic()
            if self._sizes.total() + more > self.most:
                raise OSError(f"{self.folder} is full")
            if self._sizes[client] + more > self.most * self.share:
                raise OSError(f"{client} has its share of {self.folder}")
            self._sizes[client] += more


def read(folder: Path) -> list[Statement]:
    """Every statement, oldest first; none if there is no file yet.

    Raises:
        StageError: naming the line that is not a statement. A last line cut short by a crash is skipped.
    """
    return sorted(_lines(folder / FILE), key=lambda statement: statement.time)


def newest(statements: Iterable[Statement]) -> list[Statement]:
    """The last of the statements of each client on each id, in their order.

    Of each client: otherwise one that learns an id could replace what another one said, without a vote.
    """
    last = {(statement.id, statement.client): statement for statement in statements}
    return sorted(last.values(), key=lambda statement: statement.time)


def exclusive_images(folder: Path, id: str) -> set[str]:
    """SHA-256 of the images that only statements on this answer name. Raises as `forget`."""
    said = list(_lines(folder / FILE))
    return {str(line.image) for line in said if line.image and line.id == id} - {str(line.image) for line in said if line.id != id}


def forget(folder: Path, id: str) -> set[str]:
    """Delete every statement on an answer, and those of its images that no statement on another answer names.

    Returns:
        SHA-256 of the images that were deleted.

    Raises:
        StageError: naming a line that is not a statement.
    """
    return _rewrite(folder, lambda statement: None if statement.id == id else statement)


def expired(folder: Path, end: datetime) -> set[str]:
    """SHA-256 of the images that no statement after `end` names. Raises as `forget`."""
    said = [line for line in _lines(folder / FILE) if line.image]
    return {str(line.image) for line in said if line.time <= end} - {str(line.image) for line in said if line.time > end}


def expire(folder: Path, end: datetime) -> set[str]:
    """Delete the images that no statement after `end` names; the statements stay. Returns and raises as `forget`."""
    return _rewrite(folder, lambda statement: statement if statement.time > end else statement.model_copy(update={"image": None}))


def _rewrite(folder: Path, change: Callable[[Statement], Statement | None]) -> set[str]:
    if not (folder / FILE).is_file():
        return set()
    with _locked(folder):
        before = list(_lines(folder / FILE))
        after = [changed for statement in before if (changed := change(statement)) is not None]
        gone = {statement.image for statement in before if statement.image} - {statement.image for statement in after}
        # Before the file: after a kill in between, it still says which images have to go. With them go those that no statement names, and
        # incomplete files, which a killed process left.
        kept = {statement.image for statement in after}
        for file in [*(folder / IMAGES).glob("*"), *folder.glob("*.part")]:
            if file.name not in kept:
                file.unlink(missing_ok=True)
        if after != before:
            write(folder / FILE, b"".join(statement.model_dump_json().encode() + b"\n" for statement in after))
    return {str(digest) for digest in gone}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder against other processes: a line appended while another process rewrites the file would be lost."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _lines(path: Path) -> Iterator[Statement]:
    if not path.is_file():
        return
    content = path.read_bytes()
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        if not line.endswith(b"\n"):
            continue
        try:
            yield Statement.model_validate_json(line)
        except ValidationError as error:
            raise StageError(
                f"{path}, line {number}: {error.errors()[0]['msg']} ({'.'.join(map(str, error.errors()[0]['loc']))})"
            ) from None
