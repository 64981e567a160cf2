"""The Python API: `pamusic.load("small").sample(seconds=60)`, and what belongs to it.

Does what the command line does, through the same requests, and returns values. Knows no terminal. Errors name options
as Python does; all of them are `PamusicError`s.

    >>> import pamusic
    >>> model = pamusic.load("small")
    >>> prime = pamusic.read_midi("intro.mid")
    >>> piece = model.sample(prime, seconds=5, seed=1)
    >>> piece.save("out.mid")
    PosixPath('out.mid')
"""
