"""Downloads, against a server on loopback."""

import functools
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time

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


class OddHandler(QuietHandler):
    """Answers by the path's first part."""

    def do_GET(self):
        kind, content = self.path.split("/")[1], b"\x1f\x8b" + b"x" * 5000
        self.send_response(200)
        if kind == "page":
            content = b"<!DOCTYPE html><html>Please log in</html>"
        elif kind == "empty":
            content = b""
        elif kind == "other":
            content = b"PK" + content
        self.send_header("Content-Length", str(len(content) + (1000 if kind == "cut" else 0)))
        self.end_headers()
        if kind == "drip":
            try:
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            except OSError:
                return
        self.wfile.write(content)


@pytest.fixture
def odd_server():
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OddHandler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("page", "a web page, not the file"),
        ("empty", "an empty answer"),
        ("cut", r"cut off after 5,002 of 6,002 bytes|IncompleteRead|Connection broken"),
        ("other", "not the kind of file that its name says"),
        ("drip", "fewer than 500 bytes a second"),
    ],
)
def test_answers_that_are_not_the_file_are_refused(kind, message, odd_server, tmp_path, monkeypatch):
    monkeypatch.setattr("flexseq.data.downloads.WINDOW", 1.0)
    with pytest.raises(InputError, match=message):
        fetch([f"{odd_server}/{kind}/a.tar.gz"], None, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://x/a.bin", "http://[::1/a.bin"])
def test_bad_addresses_are_not_called_bad_checksums(url, tmp_path):
    with pytest.raises(InputError, match=r"could not fetch ") as raised:
        fetch([url], "0" * 64, tmp_path)
    assert "SHA-256" not in str(raised.value)


def test_a_download_is_as_readable_as_other_files(server, tmp_path):
    folder, url = server
    (folder / "a.bin").write_bytes(b"content")
    before = os.umask(0o022)
    try:
        path = fetch([f"{url}/a.bin"], sha256(folder / "a.bin"), tmp_path / "data")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


def test_every_flip_in_a_compressed_archive_is_found(tmp_path):
    members = {f"{i}.bin": np.random.default_rng(i).bytes(3000) for i in range(5)}
    archive = a_tar(tmp_path / "a.tar.gz", members)
    whole = archive.read_bytes()
    generator = np.random.default_rng(0)
    found = 0
    for place in generator.integers(10, len(whole), 60):
        broken = bytearray(whole)
        broken[place] ^= 1 << int(generator.integers(8))
        archive.write_bytes(broken)
        try:
            unpack_tar(archive, tmp_path / "out")
        except InputError:
            found += 1
            assert not (tmp_path / "out").exists()
        else:
            assert all((tmp_path / "out" / name).read_bytes() == content for name, content in members.items())
            shutil.rmtree(tmp_path / "out")
    assert found >= 55


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "w:bz2"])
def test_cut_archives_are_refused_wherever_they_are_cut(mode, tmp_path):
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, mode) as tar:
        for i in range(3):
            info = tarfile.TarInfo(f"{i}.bin")
            info.size = 1024
            tar.addfile(info, io.BytesIO(np.random.default_rng(i).bytes(1024)))
    whole = archive.read_bytes()
    unpack_tar(archive, tmp_path / "whole")
    end = 3 * 1536 if mode == "w" else len(whole) - 1
    for cut in (*range(0, end, 512), end):
        archive.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="could not be unpacked"):
            unpack_tar(archive, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "whole"]


def test_processes_that_start_together_fetch_once(server, tmp_path):
    folder, url = server
    archive = a_tar(folder / "a.tar.gz", {f"{i}.txt": b"x" * 1000 for i in range(50)})
    code = """
import sys; from pathlib import Path
from flexseq.data.downloads import fetch, unpack_tar
path = fetch([sys.argv[1]], sys.argv[2], Path(sys.argv[3]))
unpack_tar(path, Path(sys.argv[3]) / "a")
print(len(list((Path(sys.argv[3]) / "a").iterdir())))
"""
    command = [sys.executable, "-c", code, f"{url}/a.tar.gz", sha256(archive), str(tmp_path / "data")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [out.strip().splitlines()[-1] for out, _ in results] == ["50"] * 4, results
    assert sum("fetching" in out for out, _ in results) == 1
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["a", "a.tar.gz"]
