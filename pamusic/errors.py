"""Define the errors that a user can fix.

Knows nothing of the rest. Every message is a single line that says what is wrong, what was given, and what to do; the
command line prints it and exits with `exit_code`. Any other exception that escapes is our bug and keeps its traceback.
"""


class PamusicError(Exception):
    """An error outside the program that its user can fix.

    Attributes:
        rule: Reason in words that are equal for all affected files, used for counts. The message by default.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule or message


class UsageError(PamusicError, ValueError):
    """A call with a value that never makes sense, or with two values that contradict each other."""

    exit_code = 2


def is_about_memory(error: BaseException) -> bool:
    """Return whether memory ran out; torch reports this only in words, and differently on CPU and GPU."""
    words = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in words or "out of memory" in words
