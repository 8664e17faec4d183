"""Errors of a stage that the user can fix."""


class StageError(RuntimeError):
    """A stage cannot continue. The message says what is wrong, where, and what to do; it is shown without a traceback."""


class DivergedError(StageError):
    """A training diverged: the network's outputs are no longer finite."""
