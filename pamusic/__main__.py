"""Run `python -m pamusic`, which is the same as `pamusic`."""

from pamusic.cli import main

if __name__ == "__main__":
    main()
