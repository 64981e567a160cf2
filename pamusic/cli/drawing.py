"""Pieces that are being drawn -> their ids, while somebody watches and may interrupt. Knows no options."""

from __future__ import annotations

from collections.abc import Iterable

from pamusic.cli.terminal import progress


def collected(drawn: Iterable[list[int | None]], num: int, total: int | None) -> tuple[list[list[int]], bool]:
    """The ids of each piece, drawn until the end or an interruption, and whether it was one."""
    pieces: list[list[int]] = [[] for _ in range(num)]
    try:
        for ids in progress(drawn, total=total, what="sample", unit="token"):
            for piece, id in zip(pieces, ids, strict=True):
                piece += [] if id is None else [id]
    except KeyboardInterrupt:
        if not any(pieces):
            raise
        return pieces, True
    return pieces, False
