"""IDX files and MNIST: whole, broken, missing, and downloaded from a server on this machine."""
from __future__ import annotations

import gzip
import hashlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from graphc.core.errors import ArgumentError, DataError
from graphc.data import MNIST, DataLoader, ToTensor, idx, mnist, read_idx
from graphc.data.download import fetch

CODES = {np.dtype(text): code for code, text in idx.DTYPES.items()}
RNG = np.random.default_rng(0)
PARTS = {"train": 5, "t10k": 3}


def encoded(array: np.ndarray) -> bytes:
    """`array` as an IDX file."""
    big = array.astype(array.dtype.newbyteorder(">"))
    head = bytes([0, 0, CODES[big.dtype], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + big.tobytes()


def tiny_files() -> dict[str, bytes]:
    """The four files of MNIST with 5 and 3 images, gzipped."""
    files = {}
    for part, count in PARTS.items():
        files[f"{part}-images-idx3-ubyte.gz"] = encoded(RNG.integers(0, 256, (count, 28, 28), np.uint8))
        files[f"{part}-labels-idx1-ubyte.gz"] = encoded(np.arange(count, dtype=np.uint8))
    return {name: gzip.compress(content, mtime=0) for name, content in files.items()}


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


THREE = encoded(np.arange(3, dtype=np.uint8))


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Made-up files, and their checksums where MNIST looks for them."""
    made = tiny_files()
    monkeypatch.setattr(mnist, "MD5", {name: md5(content) for name, content in made.items()})
    return made


def put(folder: Path, files: dict[str, bytes], zipped: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if zipped:
            (folder / name).write_bytes(content)
        else:
            (folder / name.removesuffix(".gz")).write_bytes(gzip.decompress(content))


class TestIdx:
    @given(st.sampled_from(sorted(CODES, key=str)).flatmap(
               lambda dtype: arrays(dtype.newbyteorder("="), array_shapes(
                   min_dims=0, max_dims=4, min_side=0, max_side=4))),
           st.booleans())
    def test_roundtrip(self, array: np.ndarray, zipped: bool) -> None:
        content = encoded(array)
        out = idx.parse_idx(gzip.compress(content) if zipped else content, "file")
        assert out.shape == array.shape and out.dtype == array.dtype and out.dtype.isnative
        assert out.tobytes() == array.tobytes()
        assert out.flags.writeable and out.flags.c_contiguous

    @given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda tail: b"\0\0\x08" + tail)
           | st.binary(max_size=60).map(lambda tail: b"\x1f\x8b" + tail))
    def test_any_bytes_are_an_array_or_a_data_error(self, content: bytes) -> None:
        try:
            array = idx.parse_idx(content, "some-file")
        except DataError as error:
            assert str(error).startswith("some-file: expected") and "found" in str(error)
        else:
            assert array.size <= len(content)

    @given(st.data())
    def test_every_truncation_is_noticed(self, data: st.DataObject) -> None:
        content = encoded(np.arange(6, dtype=np.int16).reshape(2, 3))
        whole = gzip.compress(content) if data.draw(st.booleans()) else content
        cut = whole[:data.draw(st.integers(0, len(whole) - 1))]
        with pytest.raises(DataError, match="expected"):
            idx.parse_idx(cut, "file")

    @pytest.mark.parametrize(("content", "words"), [
        (THREE + b"x", "expected 11 bytes for uint8 of shape .3,., found 12: .*too long"),
        (THREE[:-1], "expected 11 bytes .* found 10: .*truncated"),
        (bytes([0, 0, 8, 3, 0, 0]), "header of 16 bytes for 3 axes, found 6"),
        (b"<html>", "found 3c 68 74 6d"), (b"", "found 0"),
        (bytes([0, 0, 7, 1, 0, 0, 0, 0]), "found 00 00 07 01"),
        (bytes([0, 0, 8, 70]) + bytes(280), "shape that NumPy can hold"),
        (bytes([0, 0, 8, 3]) + b"\0\0\0\0" + b"\xff" * 8, "shape that NumPy can hold"),
    ])
    def test_messages(self, tmp_path: Path, content: bytes, words: str) -> None:
        path = tmp_path / "broken-idx"
        path.write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            read_idx(path)
        assert str(path) in str(caught.value)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nothing-here.*No such file"):
            read_idx(tmp_path / "nothing-here")
        with pytest.raises(DataError, match="directory"):
            read_idx(tmp_path)


class TestMNIST:
    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("below", [".", "MNIST/raw"])
    def test_reads_both_layouts(self, tmp_path: Path, files: dict[str, bytes], zipped: bool,
                                below: str) -> None:
        put(tmp_path / below, files, zipped)
        for part, count in PARTS.items():
            digits = MNIST(tmp_path, train=part == "train")
            expected = idx.parse_idx(files[f"{part}-images-idx3-ubyte.gz"], "")
            np.testing.assert_array_equal(digits.images, expected)
            assert digits.labels.tolist() == list(range(count)) and digits.labels.dtype == np.int64
            assert len(digits) == count and digits[1][0].shape == (28, 28) and digits[1][1] == 1

    def test_with_a_transform_and_a_loader(self, tmp_path: Path, files: dict[str, bytes]) -> None:
        put(tmp_path, files)
        digits = MNIST(str(tmp_path), transform=ToTensor())
        images, labels = next(iter(DataLoader(digits, 4)))
        assert images.shape == (4, 1, 28, 28) and labels.shape == (4,)
        np.testing.assert_array_equal(np.asarray(digits[3][0]), np.asarray(images)[3])
        assert repr(digits) == "MNIST(5 images of 28x28, transform=ToTensor())"

    @pytest.mark.parametrize("damage", [
        lambda c: c[:-9], lambda c: c + b"x", lambda c: b"<html>", lambda c: b"",
        lambda c: c[:40] + bytes([c[40] ^ 1]) + c[41:]])
    def test_a_damaged_gz_is_refused(self, tmp_path: Path, files: dict[str, bytes], damage: Any) -> None:
        name = "train-images-idx3-ubyte.gz"
        put(tmp_path, files | {name: damage(files[name])})
        with pytest.raises(DataError, match=rf"{name}: expected MD5 {mnist.MD5[name]}, found"):
            MNIST(tmp_path)

    @pytest.mark.parametrize(("name", "content", "words"), [
        ("train-images-idx3-ubyte", encoded(np.zeros((5, 28, 28), np.uint8))[:-1],
         "expected 3936 bytes .* found 3935"),
        ("train-images-idx3-ubyte", encoded(np.zeros((5, 27, 28), np.uint8)),
         "expected images of 28x28, found"),
        ("train-images-idx3-ubyte", encoded(np.zeros((5, 28), np.uint8)),
         "expected 3 axes of uint8 .* found 2"),
        ("train-images-idx3-ubyte", encoded(np.zeros((5, 28, 28), np.float32)), "found 3 of float32"),
        ("train-images-idx3-ubyte", encoded(np.zeros((4, 28, 28), np.uint8)),
         "for each of 4 images, found 5"),
        ("train-labels-idx1-ubyte", encoded(np.full(5, 10, np.uint8)), "expected labels 0 to 9, found 10"),
        ("train-labels-idx1-ubyte", b"", "expected an IDX file"),
    ])
    def test_a_damaged_plain_file_is_refused(self, tmp_path: Path, files: dict[str, bytes], name: str,
                                             content: bytes, words: str) -> None:
        put(tmp_path, files, zipped=False)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            MNIST(tmp_path)
        assert str(tmp_path / "train-") in str(caught.value)

    def test_missing_files_are_listed(self, tmp_path: Path, files: dict[str, bytes]) -> None:
        put(tmp_path, {name: content for name, content in files.items() if "t10k" in name})
        with pytest.raises(DataError) as caught:
            MNIST(tmp_path)
        text = str(caught.value)
        assert "Put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz into" in text
        assert str(tmp_path) in text
        assert "download=True" in text and "t10k" not in text

    @pytest.mark.parametrize(("arguments", "name"), [
        ({"root": None}, "root"), ({"train": None}, "train"), ({"download": 1}, "download"),
        ({"transform": 1}, "transform")])
    def test_bad_arguments(self, tmp_path: Path, files: dict[str, bytes], arguments: dict[str, Any],
                           name: str) -> None:
        put(tmp_path, files)
        with pytest.raises(ArgumentError, match=name):
            MNIST(**({"root": tmp_path} | arguments))

    @pytest.mark.skipif("GRAPHC_MNIST" not in os.environ,
                        reason="set GRAPHC_MNIST to a folder with the MNIST files")
    def test_the_real_files(self) -> None:
        train, test = (MNIST(os.environ["GRAPHC_MNIST"], train=part) for part in (True, False))
        assert (len(train), len(test)) == (60000, 10000)
        assert train.labels[:5].tolist() == [5, 0, 4, 1, 9] and test.labels[:5].tolist() == [7, 2, 1, 0, 4]
        assert train.images.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
        assert train.images.std() / 255 == pytest.approx(0.3081, abs=5e-5)


class Mirror:
    """A web server on this machine that serves `files`, or misbehaves with those named in `faults`."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.faults, self.asked = files, dict[str, str](), list[str]()
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                mirror.asked.append(name)
                mirror.answer(self, name)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/mnist/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler, name: str) -> None:
        fault = self.faults.get(name)
        if name not in self.files or fault == "missing":
            request.send_error(404)
            return
        content = self.files[name]
        request.send_response(200)
        if fault != "unsized":
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if fault == "stalls":
            threading.Event().wait(0.6)
            return
        sent = {"truncated": content[:-7], "altered": content[:-1] + b"?"}.get(fault or "", content)
        request.wfile.write(sent)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def mirror(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A server with the made-up files, which is MNIST's only mirror."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Mirror(files)
    monkeypatch.setattr(mnist, "MIRRORS", (server.url,))
    yield server
    server.close()


@pytest.fixture
def refused() -> str:
    """The URL of a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


class TestDownload:
    def test_fetches_all_four_once(self, tmp_path: Path, mirror: Mirror) -> None:
        assert len(MNIST(tmp_path / "new", download=True)) == 5
        folder = tmp_path / "new" / "MNIST" / "raw"
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == mirror.files
        assert len(MNIST(tmp_path / "new", train=False, download=True)) == 3
        assert sorted(mirror.asked) == sorted(mirror.files)

    def test_fetches_only_what_is_missing(self, tmp_path: Path, mirror: Mirror) -> None:
        images = {name: content for name, content in mirror.files.items() if "images" in name}
        put(tmp_path, images, zipped=False)
        MNIST(tmp_path, download=True)
        assert sorted(mirror.asked) == ["t10k-labels-idx1-ubyte.gz", "train-labels-idx1-ubyte.gz"]

    def test_fetches_a_damaged_file_again(self, tmp_path: Path, mirror: Mirror) -> None:
        put(tmp_path / "MNIST" / "raw", mirror.files)
        path = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte.gz"
        path.write_bytes(b"half")
        assert len(MNIST(tmp_path, download=True)) == 5
        assert mirror.asked == [path.name]

    @pytest.mark.parametrize(("fault", "words"), [
        ("truncated", r"truncated: expected \d+ bytes, found \d+"),
        ("altered", r"wrong checksum: expected MD5 \w+, found"), ("missing", "404")])
    def test_a_bad_reply_leaves_nothing(self, tmp_path: Path, mirror: Mirror, fault: str, words: str) -> None:
        name = "train-labels-idx1-ubyte.gz"
        mirror.faults[name] = fault
        with pytest.raises(DataError, match=words) as caught:
            MNIST(tmp_path, download=True)
        text = str(caught.value)
        assert f"{mirror.url}{name}" in text and f"Put {name} (MD5 {mnist.MD5[name]}) into {tmp_path}" in text
        kept = [path.name for path in (tmp_path / "MNIST" / "raw").iterdir()]
        assert kept == ["train-images-idx3-ubyte.gz"]

    def test_without_a_network_it_says_what_to_put_where(self, tmp_path: Path, mirror: Mirror, refused: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(mnist, "MIRRORS", (refused,))
        with pytest.raises(DataError, match="refused") as caught:
            MNIST(tmp_path, download=True)
        assert f"MNIST needs {', '.join(mirror.files)}, gzipped or not, in {tmp_path}" in str(caught.value)

    def test_the_next_mirror_is_tried(self, tmp_path: Path, mirror: Mirror, refused: str) -> None:
        name, content = next(iter(mirror.files.items()))
        assert fetch(name, tmp_path, (refused, mirror.url), md5(content)).read_bytes() == content

    def test_after_a_longer_bad_reply_the_file_is_clean(self, tmp_path: Path, mirror: Mirror) -> None:
        name, content = next(iter(mirror.files.items()))
        other = Mirror({name: content * 3})
        try:
            assert fetch(name, tmp_path, (other.url, mirror.url), md5(content)).read_bytes() == content
        finally:
            other.close()

    def test_a_reply_without_a_length_is_judged_by_its_checksum(self, tmp_path: Path, mirror: Mirror) -> None:
        name, content = next(iter(mirror.files.items()))
        mirror.faults[name] = "unsized"
        assert fetch(name, tmp_path, (mirror.url,), md5(content)).read_bytes() == content

    def test_a_stalled_mirror_times_out(self, tmp_path: Path, mirror: Mirror) -> None:
        name, content = next(iter(mirror.files.items()))
        mirror.faults[name] = "stalls"
        with pytest.raises(DataError, match="timed out"):
            fetch(name, tmp_path, (mirror.url,), md5(content), timeout=0.1)
        assert not list(tmp_path.iterdir())

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path, mirror: Mirror) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(DataError, match="cannot write"):
            MNIST(tmp_path / "file" / "below", download=True)


def test_importing_the_package_loads_no_network_code() -> None:
    import subprocess
    import sys

    heavy = "['rich', 'urllib.request', 'http.client', 'concurrent.futures', 'numba', 'networkx']"
    script = f"import sys, graphc.data.mnist; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                         cwd=Path(__file__).parents[2])
    assert out.stdout.strip() == "[]"
