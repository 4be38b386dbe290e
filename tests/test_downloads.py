"""Downloads, against a server on loopback."""

import functools
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest
import soundfile

from flexseq import InputError
from flexseq.data import speech_commands
from flexseq.data.downloads import fetch, unpack_tar


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder))
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_download_is_checked_and_kept(server, tmp_path):
    folder, url = server
    (folder / "a.bin").write_bytes(b"content" * 1000)
    target = tmp_path / "data"
    path = fetch([f"{url}/a.bin"], sha256(folder / "a.bin"), target)
    assert path == target / "a.bin"
    assert path.read_bytes() == b"content" * 1000
    (folder / "a.bin").unlink()
    assert fetch([f"{url}/a.bin"], sha256(path), target) == path  # not asked for again


def test_the_next_address_is_tried(server, tmp_path):
    folder, url = server
    (folder / "a.bin").write_bytes(b"content")
    path = fetch([f"{url}/missing/a.bin", f"{url}/a.bin"], sha256(folder / "a.bin"), tmp_path / "data")
    assert path.read_bytes() == b"content"


def test_another_checksum_is_refused_and_nothing_is_left(server, tmp_path):
    folder, url = server
    (folder / "a.bin").write_bytes(b"altered")
    with pytest.raises(InputError, match=r"could not fetch a\.bin from .*SHA-256 is not the known one.*put it into .*data.*digits"):
        fetch([f"{url}/a.bin"], "0" * 64, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_no_network_says_what_from_where_and_what_else(tmp_path):
    with pytest.raises(InputError, match=r"could not fetch a\.bin from http://127\.0\.0\.1:9/a\.bin .*by hand, put it into .*digits"):
        fetch(["http://127.0.0.1:9/a.bin"], "0" * 64, tmp_path)


def test_an_unknown_checksum_is_said(server, tmp_path, capsys):
    folder, url = server
    (folder / "a.bin").write_bytes(b"content")
    fetch([f"{url}/a.bin"], None, tmp_path / "data")
    assert "not verified" in capsys.readouterr().out


def a_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def test_unpacking_is_whole(tmp_path):
    unpack_tar(a_tar(tmp_path / "a.tar.gz", {"./x/1.txt": b"one", "2.txt": b"two"}), tmp_path / "out")
    assert (tmp_path / "out" / "x" / "1.txt").read_bytes() == b"one"


@pytest.mark.parametrize("name", ["../outside.txt", "/absolute.txt", "link"])
def test_members_that_lead_outside_are_refused(tmp_path, name):
    archive = a_tar(tmp_path / "a.tar.gz", {"fine.txt": b"fine", name: None if name == "link" else b"evil"})
    with pytest.raises(InputError, match="no plain file inside the archive; nothing was unpacked"):
        unpack_tar(archive, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz"]


def test_a_truncated_archive_leaves_nothing(tmp_path):
    archive = a_tar(tmp_path / "a.tar.gz", {"x.bin": np.random.default_rng(0).bytes(50_000)})
    archive.write_bytes(archive.read_bytes()[:20_000])
    with pytest.raises(InputError, match="could not be unpacked"):
        unpack_tar(archive, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar.gz"]


def test_speech_commands_downloads_unpacks_and_loads(server, tmp_path, monkeypatch):
    folder, url = server
    monkeypatch.setenv("FLEXSEQ_CACHE", str(tmp_path / "cache"))
    members = {}
    for w, word in enumerate(("yes", "no")):
        for n in range(10):
            clip = io.BytesIO()
            soundfile.write(clip, np.random.default_rng(n).normal(0, 0.1, 16_000) * (w + 1), 16_000, format="WAV")
            members[f"./{word}/s{n}_nohash_0.wav"] = clip.getvalue()
    archive = a_tar(folder / "speech_commands_v0.02.tar.gz", members)
    monkeypatch.setattr(speech_commands, "URLS", [f"{url}/speech_commands_v0.02.tar.gz"])
    monkeypatch.setattr(speech_commands, "SHA256", sha256(archive))
    assert not speech_commands.is_here()
    data = speech_commands.load_speech_commands(mfcc=False, words=("yes", "no"), split="paper")
    assert sum(data.sizes.values()) == 20
    assert speech_commands.is_here()
