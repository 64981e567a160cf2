"""What is no MIDI file is refused by what it is, with what to do about it."""

import gzip
import io
import zipfile

import pytest
from builders import tune

from pamusic.errors import PamusicError
from pamusic.music.midi import read_midi

EXPORT = "export it as MIDI in a notation program, such as MuseScore"


def archive(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:  # stored as it is, so that a MIDI file in it would be found
        for name in names:
            file.writestr(name, tune(0))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (archive("a.mid"), "but a zip archive; unpack it, or name it .zip and pass it to a command that reads folders"),
        (archive("META-INF/container.xml", "score.xml"), f"but compressed MusicXML (.mxl), a score; {EXPORT}"),
        (archive("META-INF/container.xml", "score.mscx"), f"but a score of MuseScore (.mscz); {EXPORT}"),
        (gzip.compress(gzip.compress(tune(0))), "but packed by gzip more than once; unpack it"),
        (b"BZh91AY&SY", "but packed by bzip2; unpack it and pass the file inside"),
        (b"SMF2CLIP\0\x40\0\0", "but a MIDI 2.0 clip; save it as a Standard MIDI File of MIDI 1.0"),
        (b'<?xml version="1.0"?>\n<score-partwise version="4.0">', f"but MusicXML, a score; {EXPORT}"),
        ('\ufeff<?xml version="1.0"?><score-timewise>'.encode("utf-16-le"), f"but MusicXML, a score; {EXPORT}"),
        (b'<?xml version="1.0"?><!DOCTYPE score-partwise PUBLIC>', f"but MusicXML, a score; {EXPORT}"),
        (b'<?xml version="1.0"?><museScore version="4">', f"but a score of MuseScore; {EXPORT}"),
        (b'<?xml version="1.0"?><mei xmlns="">', f"but MEI, a score; {EXPORT}"),
        (b"\n\n<!DOCTYPE html><html>404", "but a web page; download the file itself again"),
        (b"<?xml version='1.0'?><html>", "but a web page; download the file itself again"),
        (b"<?xml version='1.0'?><a>", "but XML; download the file itself again"),
        (b"version https://git-lfs.github.com/spec/v1", "but a pointer of Git LFS; fetch the file itself with git lfs"),
        (b"RIFF\0\0\0\0WAVEfmt ", "but a sound recording (WAV); transcribe it"),
        (b"ID3\4", "but a sound recording (MP3); transcribe it"),
        (b"%PDF-1.7", "but a PDF document; transcribe it"),
        (b"FORM\0\0\0\x0eXDIRINFO", "but an XMI file of a game; convert it to MIDI"),
        (bytes(5000), "but zeros alone; download the file itself again"),
        (b"hello", "(it begins with b'hell', not b'MThd'); use a Standard MIDI File (.mid)"),
        (b"<b>", "(it begins with b'<b>', not b'MThd'); use a Standard MIDI File (.mid)"),
    ],
)
def test_a_wrong_file_is_told_by_what_it_is_and_what_to_do(data, says):
    with pytest.raises(PamusicError) as caught:
        read_midi(data, "piece.mid")

    assert f"piece.mid: is not a MIDI file {says}" in str(caught.value)
    assert caught.value.rule == "not a MIDI file"


def test_a_zip_archive_that_is_named_so_need_not_be_renamed():
    with pytest.raises(PamusicError, match=r"archive; unpack it, or pass it to a command that reads folders$"):
        read_midi(archive("a.mid"), "Pieces.ZIP")


def test_a_midi_file_that_gzip_has_packed_is_read(tmp_path):
    (tmp_path / "piece.mid").write_bytes(gzip.compress(tune(0)))

    assert read_midi(tmp_path / "piece.mid").equals(read_midi(tune(0)))
    assert read_midi(gzip.compress(tune(0))).equals(read_midi(tune(0)))
