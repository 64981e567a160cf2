"""The errors for what a person at the keyboard can put right.

Knows nothing of the rest. Every message is a single line that says what is wrong, what we got, and what to do;
the command line prints it and exits with `exit_code`. Anything else that escapes is our bug and keeps its traceback.
"""


class PamusicError(Exception):
    """Something outside the program is wrong, and its user can put it right.

    Attributes:
        rule: which rule refuses, in words that are the same for every file it refuses: what is counted over many
            files. The message by default.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, rule: str = "") -> None:
        super().__init__(message)
        self.rule = rule or message


class UsageError(PamusicError, ValueError):
    """We were called with a value that never makes sense, or with two that contradict each other."""

    exit_code = 2


def is_about_memory(error: BaseException) -> bool:
    """Return whether memory ran out: torch says so in words alone, on a CPU and on a GPU in different ones."""
    words = str(error)
    return isinstance(error, MemoryError) or "can't allocate memory" in words or "out of memory" in words
