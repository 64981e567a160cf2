"""The Python API: `pamusic.load().sample(seconds=60)`, and the functions around it.

It does what the command line does, with the same requests, and returns values. Knows no terminal. Errors name options
in Python's form; all of them are `PamusicError`s.
    >>> import pamusic
    >>> model = pamusic.load()
    >>> prime = pamusic.read_midi("intro.mid")
    >>> piece = model.sample(prime, seconds=5, seed=1)
    >>> piece.save("out.mid")
    PosixPath('out.mid')
"""
