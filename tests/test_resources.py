"""What ships beside the package in a checkout travels inside it in a wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pamusic.inference.native_kernel import SOURCE
from pamusic.page.document import document
from pamusic.resources import checkpoints_folder, tokenizers_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()}


def test_a_checkout_has_its_folders_beside_the_package():
    assert tokenizers_folder() == ROOT / "tokenizers"
    assert checkpoints_folder() == ROOT / "checkpoints"


@pytest.mark.slow
def test_the_wheel_carries_every_tokenizer_and_checkpoint(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())

    for name in ("tokenizers", "checkpoints"):
        assert files(ROOT / name)
        assert {f"pamusic/_shipped/{name}/{file}" for file in files(ROOT / name)} <= inside


def test_the_wheel_carries_what_is_compiled_later(wheel):
    assert f"pamusic/{SOURCE.relative_to(ROOT / 'pamusic').as_posix()}" in zipfile.ZipFile(wheel).namelist()


def test_the_wheel_puts_nothing_but_pamusic_into_site_packages(wheel):
    top = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}

    assert len(top) == 2
    assert "pamusic" in top
    assert any(name.startswith("pamusic-") and name.endswith(".dist-info") for name in top)


def test_an_unpacked_wheel_finds_its_own(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    ask = "from pamusic.resources import *; print(tokenizers_folder()); print(checkpoints_folder())"

    said = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    shipped = tmp_path / "pamusic" / "_shipped"
    assert said.splitlines() == [str(shipped / "tokenizers"), str(shipped / "checkpoints")]


def test_an_unpacked_wheel_makes_a_page(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    ask = "from pamusic.page.document import document; import sys; sys.stdout.buffer.write(document([], 'None'))"

    made = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, capture_output=True, check=True).stdout

    assert made == document([], "None")


def test_neither_folder_holds_python():
    for folder in (tokenizers_folder(), checkpoints_folder()):
        assert not list(folder.rglob("*.py"))
