"""What a command says: when it cannot do what it was asked, and while it works."""


def one_line_error(done, code=1) -> str:
    """The line of an error, after seeing that it is all that was said, and no traceback."""
    assert done.exit_code == code, (done.exit_code, done.stderr, done.exception)
    assert isinstance(done.exception, SystemExit)
    assert done.stdout_bytes == b""
    assert done.stderr.startswith("pamusic: error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def wait_for(words, running) -> None:
    """Read what a process says until a line has these words: a slow machine says first what it is waiting for."""
    while words not in (line := running.stderr.readline()):
        assert line, f"{words!r} was never said"
