"""Finds a SoundFont to play a piano on: a good one where one is installed, else the one that pip installs.

Knows file names and the folders of the common systems; plays nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from pamusic.errors import PamusicError

# Better pianos than the default, the best first; the packages of Debian and MuseScore call them so.
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
COMPRESSED = ".sf3"  # samples in Ogg Vorbis, which FluidSynth alone can read


def user_folder() -> str:
    """Return the folder where a user of this system may put SoundFonts; `~` stands for the user's home."""
    if sys.platform == "darwin":
        return "~/Library/Audio/Sounds/Banks"
    if sys.platform == "win32":
        return r"C:\soundfonts"
    return "~/.local/share/soundfonts"


def usual_folders() -> list[Path]:
    """Return the folders where this system's packages and programs put SoundFonts, the user's own first."""
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
    except RuntimeError:  # this user has no home
        return [Path(name) for name in names]


def better_soundfonts(engine: str, folders: Iterable[Path] | None = None) -> list[Path]:
    """Return the good SoundFonts that are installed and that an engine can read, the best first.

    Args:
        engine: `fluidsynth`, or another, which reads no compressed samples.
        folders: where to look; by default the usual ones.
    """
    folders = usual_folders() if folders is None else list(folders)
    names = [name for name in BETTER if engine == "fluidsynth" or not name.endswith(COMPRESSED)]
    return [path for name in names for folder in folders if (path := folder / name).is_file()]


def default_soundfont() -> Path:
    """Return TimGM6mb.sf2, found without importing pretty_midi.

    Raises:
        PamusicError: pretty_midi is not installed, or without its SoundFont.
    """
    package = importlib.util.find_spec("pretty_midi")
    path = Path(package.origin).with_name("TimGM6mb.sf2") if package and package.origin else None
    if path is None or not path.is_file():
        raise PamusicError("the default SoundFont is missing; pip install pretty_midi, or give one with --soundfont")
    return path


def check_soundfont(path: Path) -> None:
    """Refuse a file that is no SoundFont: FluidSynth would take another one and say nothing.

    Raises:
        PamusicError: it is missing, cannot be read, or is no whole SoundFont.
    """
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except FileNotFoundError:
        raise PamusicError(f"{path}: no such SoundFont; check the path") from None
    except IsADirectoryError:
        raise PamusicError(f"{path}: is a folder; give an .sf2 file") from None
    except OSError as error:
        raise PamusicError(f"{path}: cannot be read ({error.strerror}); give an .sf2 file that can be") from None
    if head[:4] != b"RIFF" or head[8:] != b"sfbk":
        raise PamusicError(f"{path}: is not a SoundFont (it begins with {head!r}); give an .sf2 file")
    if int.from_bytes(head[4:8], "little") + 8 > path.stat().st_size:
        raise PamusicError(f"{path}: is a truncated SoundFont; fetch it again")
