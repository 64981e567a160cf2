"""Find a SoundFont for a piano: a good one if one is installed, else the one that pip installs.

Knows file names and the folders of the common systems; plays nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from pamusic.errors import PamusicError

# Better pianos than the default, the best first, under the file names of Debian's and MuseScore's packages.
BETTER = (
    "FluidR3_GM.sf2",
    "MuseScore_General_Full.sf2",
    "MuseScore_General_HQ.sf2",
    "MuseScore_General.sf2",
    "MuseScore_General_Full.sf3",
    "MuseScore_General_HQ.sf3",
    "MuseScore_General.sf3",
    "MS Basic.sf3",
)
COMPRESSED = ".sf3"  # samples in Ogg Vorbis, which only FluidSynth can read


def user_folder() -> str:
    """Return the folder for a user's own SoundFonts on this system; `~` stands for the user's home."""
    if sys.platform == "darwin":
        return "~/Library/Audio/Sounds/Banks"
    if sys.platform == "win32":
        return r"C:\soundfonts"
    return "~/.local/share/soundfonts"


def usual_folders() -> list[Path]:
    """Return the folders where this system's packages and programs install SoundFonts, the user's own first."""
    program_files = os.environ.get("PROGRAMFILES", r"C:\Program Files")
    names = {
        "darwin": (
            "/Library/Audio/Sounds/Banks",
            *("/opt/homebrew/share/soundfonts", "/usr/local/share/soundfonts", "/opt/local/share/sounds/sf2"),
            *(f"/Applications/MuseScore {version}.app/Contents/Resources/sound" for version in (4, 3)),
        ),
        "win32": (
            os.path.join(os.environ.get("PROGRAMDATA", r"C:\ProgramData"), "soundfonts"),
            *(os.path.join(program_files, f"MuseScore {version}", "sound") for version in (4, 3)),
        ),
    }.get(
        sys.platform,
        (
            *("/usr/share/sounds/sf2", "/usr/share/sounds/sf3", "/usr/share/soundfonts"),
            *("/usr/local/share/soundfonts", "/usr/local/share/sounds/sf2"),
        ),
    )
    try:
        return [Path(user_folder()).expanduser(), *map(Path, names)]
    except RuntimeError:  # this user has no home folder
        return [Path(name) for name in names]


def better_soundfonts(engine: str, folders: Iterable[Path] | None = None) -> list[Path]:
    """Return the installed good SoundFonts that an engine can read, the best first.

    Args:
        engine: `fluidsynth`, or another engine, which cannot read compressed samples.
        folders: Folders to search; by default the usual ones.
    """
    folders = usual_folders() if folders is None else list(folders)
    names = [name for name in BETTER if engine == "fluidsynth" or not name.endswith(COMPRESSED)]
    return [path for name in names for folder in folders if (path := folder / name).is_file()]


def default_soundfont() -> Path:
    """Return the path of TimGM6mb.sf2, found without importing pretty_midi.

    Raises:
        PamusicError: pretty_midi is not installed, or has no SoundFont.
    """
    package = importlib.util.find_spec("pretty_midi")
    path = Path(package.origin).with_name("TimGM6mb.sf2") if package and package.origin else None
    if path is None or not path.is_file():
        raise PamusicError("the default SoundFont is missing; run pip install pretty_midi, or use --soundfont")
    return path


def check_soundfont(path: Path) -> None:
    """Raise an error if a file is not a SoundFont; FluidSynth would silently use another one.

    Raises:
        PamusicError: the file is missing, cannot be read, or is not a complete SoundFont.
    """
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such SoundFont; check the path") from None
    except IsADirectoryError:
        raise PamusicError(f"{path}: is a folder; use an .sf2 file") from None
    except OSError as error:
        raise PamusicError(
            f"{path}: cannot be read ({error.strerror}); check its permissions, or use another .sf2 file"
        ) from None
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise PamusicError(f"{path}: is not a SoundFont (it begins with {head!r}); use an .sf2 file")
    if int.from_bytes(head[4:8], "little") + 8 > path.stat().st_size:
        raise PamusicError(f"{path}: is a truncated SoundFont; fetch it again")
