"""The command line's output: terminals, closed streams, readers that leave, full disks."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dlf import zoo
from dlf.cli.streams import print_traceback, warning_line, write
from dlf.support.terminal import printable

PROGRAM = Path(sys.executable).parent / "dlf"
GENERATE = f"{PROGRAM} generate {zoo.path('small-base')}"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_printable() -> None:
    assert printable("ä\u3000\U0001f600 = \x1b[0m\x7f\x85\u2028\udcff\n") == (
        "ä\u3000\U0001f600 = \\x1b[0m\\x7f\\x85\\u2028\\udcff\\n"
    )
    assert printable("a\tb\r\nc\rd\x1b\n", lines=True) == "a\tb\nc\\rd\\x1b\n"


def test_a_models_text_does_not_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, shown in ((Terminal(), "red\\x1b[31m\n"), (io.StringIO(), "red\x1b[31m\n")):
        monkeypatch.setattr(sys, "stdout", stream)
        write("red\x1b[31m\n")
        assert stream.getvalue() == shown


def test_warnings_and_tracebacks_do_not_either(capsys: pytest.CaptureFixture[str]) -> None:
    assert warning_line(UserWarning("a\nb\x1b"), UserWarning, "file", 3) == "dlf: warning: a b\\x1b\n"
    try:
        raise RuntimeError("c\x1b[2J")
    except RuntimeError as error:
        print_traceback(RuntimeError, error, error.__traceback__)
    shown = capsys.readouterr().err
    assert shown.endswith("RuntimeError: c\\x1b[2J\n") and "\x1b" not in shown and shown.count("\n") > 2


@pytest.mark.parametrize(
    ("command", "codes", "message"),
    [
        (f"{GENERATE} a --max-new-tokens 2 >&-", {0}, ""),
        (f"{GENERATE} - --max-new-tokens 2 <&-", {2}, "dlf: error: standard input is empty"),
        (f"{GENERATE} a --max-new-tokens 0 2>&-", {2}, ""),
        (f"{GENERATE} a --max-new-tokens 2 >/dev/full", {2}, "No space left on device: 'standard output'"),
        (f"set -o pipefail; {GENERATE} a --max-new-tokens 200 --ignore-eos | head -c 1 >/dev/null", {1}, ""),
    ],
)
def test_streams_that_cannot_be_used(command: str, codes: set[int], message: str) -> None:
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in codes, done.stderr
    if message:
        assert message in done.stderr and done.stderr.count("\n") == 1
    else:
        assert done.stderr == ""


def test_ctrl_c_is_one_line() -> None:
    command = [*GENERATE.split(), "a", "--max-new-tokens", "500", "--ignore-eos"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(1)  # decoding has begun
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert process.stderr.read() == b"\ndlf: interrupted\n"
