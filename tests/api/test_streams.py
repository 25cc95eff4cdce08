"""Every command where its output, its terminal or its user stops it; run as users run them."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from pathlib import Path

import pytest

from sigcam.cli import COMMANDS, main
from sigcam.cli.streams import ends_in_order, json_line, write_line
from sigcam.core.progress import Bar
from sigcam.core.progress import write_line as write_above
from tests.support.tiny import NAMES

LINUX = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def sigcam(*arguments, **options):
    command = [sys.executable, "-m", "sigcam", *map(str, arguments)]
    return subprocess.run(command, capture_output="stdout" not in options, timeout=120, **options)


class Failing(io.StringIO):
    """A stream that can't be written."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        self.flush()

    def flush(self):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["kernels", "build"]])
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [
        (errno.ENOSPC, 1, "cannot write to standard output: No space left"),
        (errno.EIO, 1, "cannot write to standard output: Input/output error"),
        (errno.EPIPE, (1, 141), ""),
    ],
)
def test_help_of_every_command_that_cannot_be_printed(monkeypatch, command, number, code, says):
    monkeypatch.setattr(sys, "stdout", Failing(number))
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code in (code if isinstance(code, tuple) else (code,))
    assert says in told.getvalue()
    assert told.getvalue().count("\n") == bool(says)


def test_results_that_cannot_be_printed(monkeypatch, tiny_model, photographs_in, tmp_path):
    image = str(photographs_in(tmp_path, "a.png") / "a.png")
    for arguments in (["explain", str(tiny_model), image], ["info", str(tiny_model)]):
        for number, code in ((errno.ENOSPC, 1), (errno.EPIPE, 141)):
            with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
                patch.setattr(sys, "stdout", Failing(number))
                main(arguments)
            assert stopped.value.code == code


@LINUX
@pytest.mark.slow
def test_a_full_device_and_a_closed_pipe(tiny_model, photographs_in, tmp_path):
    folder = photographs_in(tmp_path, *(f"{n}.png" for n in range(3)))
    for arguments in (["explain", tiny_model, folder], ["info", tiny_model], ["--help"]):
        with Path("/dev/full").open("w") as full:
            found = sigcam(*arguments, stdout=full, stderr=subprocess.PIPE)
        assert found.returncode == 1
        assert found.stderr.decode().splitlines() == [
            "error: cannot write to standard output: No space left on device; what was printed "
            "is incomplete"
        ]
    reading, writing = os.pipe()
    os.close(reading)
    found = sigcam("explain", tiny_model, folder, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, b"")


@LINUX
@pytest.mark.slow
def test_a_full_or_closed_standard_error_stops_no_work(tiny_model, photographs_in, tmp_path):
    folder = photographs_in(tmp_path, "a.png", "b.txt")
    program = f'"{sys.executable}" -m sigcam explain "{tiny_model}" "{folder}" "{folder}/none.png"'
    for end in ("2>/dev/full", "2>&-"):
        found = subprocess.run(["sh", "-c", f"{program} {end}"], capture_output=True, check=False)
        assert found.returncode == 1
        assert found.stdout.startswith(f"{folder}/a.png\t".encode())
    shell = f'"{sys.executable}" -m sigcam explain "{tiny_model}" - <&-'
    found = subprocess.run(["sh", "-c", shell], capture_output=True, check=False)
    assert found.returncode == 1
    assert b"is empty" in found.stderr
    closed = subprocess.run(["sh", "-c", f"{program} <&- >&- 2>&-"], check=False)
    assert closed.returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
def test_what_a_terminal_cannot_encode(monkeypatch, encoding):
    text = "caf\u00e9 \u65e5\u672c \U0001f4a1 \udce9"
    stream = io.TextIOWrapper(io.BytesIO(), encoding)
    write_line(stream, text)
    line = stream.buffer.getvalue().decode(encoding)
    assert line == text.encode(encoding, "backslashreplace").decode(encoding) + "\n"
    record = {"label": text}
    assert json.loads(json_line(record, stream)) == record
    json_line(record, stream).encode(encoding)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_class_and_file_names_in_any_encoding(make_artifact, photographs_in, tmp_path, encoding):
    names = ("caf\u00e9", "\u65e5\u672c", "\U0001f4a1", "plain")
    model = make_artifact(class_names=names)
    folder = photographs_in(tmp_path, os.fsdecode(b"caf\xe9.png"), "\u65e5.png")
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for arguments in ((), ("--json",)):
        found = sigcam("explain", model, folder, *arguments, env=environment)
        assert (found.returncode, found.stderr) == (0, b"")
        lines = found.stdout.decode(encoding).splitlines()
        assert len(lines) == 2
    images = [json.loads(line)["image"] for line in lines]
    assert sorted(images) == sorted(str(path) for path in folder.iterdir())
    assert all(json.loads(line)["explanations"][0]["label"] in names for line in lines)
    spec = sigcam("info", model, "--json", env=environment)
    assert json.loads(spec.stdout.decode(encoding))["class_names"] == list(names)


def test_ctrl_c_anywhere(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    for name in ("read_spec", "Spec.from_json"):
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr("sigcam.hub.pull.local", stopped)
            main(["info", name])
        assert ended.value.code == 130
        assert capsys.readouterr().err == "error: stopped by Ctrl-C\n"
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sigcam.cli.importlib.import_module", stopped)
        main(["info"])
    assert ended.value.code == 130


def test_other_errors_are_not_hidden():
    with pytest.raises(FileNotFoundError), ends_in_order():
        Path("/no/such/file").stat()
    with pytest.raises(OSError, match="of a library"), ends_in_order():
        raise OSError("of a library")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(text, width=200):
    """Returns what a terminal shows after it got a text: lines as they ended up."""
    rows = [""]
    for part in text.replace("\r\n", "\n").split("\n"):
        line = ""
        for piece in part.split("\r"):
            line = piece + line[len(piece) :]
        rows.append(line[:width].rstrip())
    return rows[1:]


@pytest.mark.parametrize("write", [write_above, lambda text: write_line(sys.stderr, text)])
def test_a_line_clears_the_bar(monkeypatch, write):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with Bar(3, unit="image", label="looking") as bar:
        bar.advance()
        write("short")
        bar.advance(2)
    assert "short" in shown(terminal.getvalue())


def test_results_clear_the_bar_where_they_share_its_terminal(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(sys, "stdout", terminal)
    with Bar(3, unit="image", label="looking") as bar:
        bar.advance()
        write_line(sys.stdout, "a result")
    assert "a result" in shown(terminal.getvalue())
    # A file gets its lines, and the bar stays.
    before = terminal.getvalue()
    monkeypatch.setattr(sys, "stdout", file := io.StringIO())
    with Bar(3, unit="image", shown=True) as bar:
        drawn = terminal.getvalue()
        write_line(sys.stdout, "a result")
        assert terminal.getvalue() == drawn
    assert file.getvalue() == "a result\n"
    assert terminal.getvalue().startswith(before)


@pytest.mark.filterwarnings("always")
def test_warnings_clear_the_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    # As without pytest, which collects them instead.
    monkeypatch.setattr(warnings, "showwarning", lambda text, *_: print(text, file=sys.stderr))
    before = warnings.showwarning
    with ends_in_order(), Bar(3, unit="image", label="looking") as bar:
        bar.advance()
        warnings.warn("the cache is damaged", stacklevel=1)
    assert "the cache is damaged" in shown(terminal.getvalue())
    assert warnings.showwarning is before


def on_terminal(*arguments, interrupt_at=None):
    """Runs the program on a terminal of its own; returns its exit code and what was shown."""
    command = [sys.executable, "-m", "sigcam", *map(str, arguments)]
    own, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    process = subprocess.Popen(
        command, stdin=other, stdout=other, stderr=other, start_new_session=True
    )
    os.close(other)
    data, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        ready, _, _ = select.select([own], [], [], 0.2)
        try:
            part = os.read(own, 65536) if ready else b""
        except OSError:  # the other side is closed
            break
        data += part
        if interrupt_at is not None and interrupt_at in data:
            process.send_signal(signal.SIGINT)
            interrupt_at = None
        if not ready and process.poll() is not None:
            break
    os.close(own)
    return process.wait(timeout=60), shown(data.decode())


@pytest.mark.slow
def test_lines_on_a_terminal_are_whole(tiny_model, photographs_in, tmp_path):
    folder = photographs_in(tmp_path, *(f"{n:02}.png" for n in range(30)))
    (folder / "07.png").write_bytes(b"no image")
    code, rows = on_terminal("explain", tiny_model, folder, "--verbose", "--batch-size", 1)
    assert code == 1
    results = [row for row in rows if "probability" in row]
    assert len(results) == 29
    for row in results:
        name, label, *_ = row.split("\t")
        assert name.startswith(str(folder))
        assert label in NAMES
        assert "|" not in row
    (error,) = (row for row in rows if "07.png is not an image" in row)
    assert error.startswith("error: ")
    assert any(row.startswith("30 images in ") for row in rows)
    assert any("30/30" in row for row in rows)


@pytest.mark.slow
def test_ctrl_c_on_a_terminal(tiny_model, photographs_in, tmp_path):
    folder = photographs_in(tmp_path, *(f"{n:03}.png" for n in range(400)))
    code, rows = on_terminal("explain", tiny_model, folder, interrupt_at=b"probability")
    assert code == 130
    assert any(row.startswith("error: stopped by Ctrl-C") for row in rows)
    assert not any("Traceback" in row for row in rows)
