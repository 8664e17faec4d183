"""Child processes that show their output while they run, and that never outlive the process that started them."""

import codecs
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

BAR_SECONDS = 10.0
"""How often a progress bar is logged; the terminal shows it all the time."""
TAIL = 200
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Ended:
    """How a process ended, and the last lines it printed."""

    returncode: int
    tail: list[str]

    def message(self) -> str:
        """The process's own error message: what follows its last `error:`, otherwise its last line."""
        lines = [line for line in self.tail if line.strip()]
        for number in reversed(range(len(lines))):
            if lines[number].lower().startswith("error:"):
                return "\n".join(lines[number:]).partition(":")[2].strip()
        return lines[-1] if lines else f"it printed nothing and exited with {self.returncode}"


def environment(**more: str) -> dict[str, str]:
    """This process's environment with this Python first on PATH, unbuffered output, and `more`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **more}


def stream(command: Sequence[str], log: Callable[[str], None], env: Mapping[str, str] | None = None) -> Ended:
    """Run a command in its own process group; pass each line it prints to `log`, and its progress bars to the terminal.

    What is left of the group is killed when this call ends, even by an exception, and when this process dies, even by `kill -9`.
    """
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, start_new_session=True
    ) as child:
        try:
            with leash(-child.pid):
                assert child.stdout is not None
                tail = deque(_relay(child.stdout, log), maxlen=TAIL)
                return Ended(child.wait(), list(tail))
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


@contextmanager
def leash(pid: int) -> Iterator[None]:
    """While this is open, `kill -9` of this process also kills `pid`, or the whole process group if it is negative.

    A shell does that once the pipe from this process closes, because nothing in this process could act after SIGKILL.
    """
    guard = subprocess.Popen(
        ["sh", "-c", 'read -r _ || kill -KILL "$1"', "leash", str(pid)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        guard.communicate(b"\n")


def _relay(pipe: IO[bytes], log: Callable[[str], None]) -> Iterable[str]:
    """Log and yield each complete line. As on a terminal, text after a carriage return replaces the text before it."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    rest, logged = "", time.monotonic()
    while chunk := os.read(pipe.fileno(), 65536):
        *lines, rest = (rest + COLOURS.sub("", decode(chunk)).replace("\r\n", "\n")).split("\n")
        for line in filter(None, map(_visible, lines)):
            _terminal("")
            log(line)
            logged = time.monotonic()
            yield line
        if "\r" in rest and (bar := _visible(rest)):
            _terminal(bar)
            if time.monotonic() - logged > BAR_SECONDS:
                _terminal("")
                log(bar)
                logged = time.monotonic()
            rest = "\r" + bar
    if line := _visible(rest):
        _terminal("")
        log(line)
        yield line


def _visible(text: str) -> str:
    """What a terminal would finally show of a line."""
    return next((part for part in reversed(text.split("\r")) if part.strip()), "").rstrip()


def _terminal(bar: str) -> None:
    """Show a progress bar in the terminal's last line, replacing the previous one."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K" + bar[: shutil.get_terminal_size().columns - 1])
        sys.stderr.flush()
