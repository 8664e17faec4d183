"""The one exception that a stage raises when the user can put it right."""


class StageError(RuntimeError):
    """A stage cannot go on. The message says what is wrong, where, and what to do; it is shown without a traceback."""


class DivergedError(StageError):
    """A training whose weights have grown beyond all numbers."""
