"""The prompt of `arrow-quant sql` at a terminal of 80 columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
COMMAND = os.environ.get("ARROW_QUANT", "arrow-quant")
DIGITS = REPOSITORY / "tests" / "data" / "digits-dit"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")


class Prompt:
    """A prompt, and what it shows."""

    def __init__(self, home: Path) -> None:
        pid, self.terminal = pty.fork()
        if pid == 0:
            environment = {**os.environ, "HOME": str(home), "TERM": "xterm"}
            for name in ("COLUMNS", "XDG_DATA_HOME"):
                environment.pop(name, None)
            os.execvpe(COMMAND, [COMMAND, "sql", "--model", f"m={DIGITS}"], environment)
        self.pid = pid
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        self.shown = ""
        self.until("arrow-quant> ")

    def until(self, text: str) -> str:
        """What is shown until a text, which must come within a minute."""
        end = time.monotonic() + 60
        while text not in self.shown:
            assert time.monotonic() < end, self.shown
            if select.select([self.terminal], [], [], 1)[0]:
                found = os.read(self.terminal, 65536).decode(errors="replace")
                self.shown += re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", found).replace("\r\n", "\n")
        shown, self.shown = self.shown.split(text, 1)
        return shown

    def type(self, line: str) -> str:
        """What is shown for a line, until the next prompt."""
        os.write(self.terminal, f"{line}\r".encode())
        # Once as it is typed, and then the next.
        echo = self.until("\n")
        return echo + "\n" + self.until("arrow-quant> ")

    def leave(self) -> int:
        """Leaves, and gives the status."""
        os.write(self.terminal, b"\\q\r")
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.terminal)
        return status


def test_commands_of_the_prompt(tmp_path: Path) -> None:
    prompt = Prompt(tmp_path)
    commands = prompt.type("\\?")
    assert all(name in commands for name in ("\\d NAME", "\\df", "\\timing", "\\x", "\\q"))
    refused = prompt.type("\\foo")
    assert "error: there is no command \\foo, allowed: \\?, \\d, " in refused
    assert "weights" in prompt.type("\\d")
    assert "List(non-null Int64)" in prompt.type("\\d m.tensors")
    assert "there is no table or schema 'nothing'" in prompt.type("\\d nothing")
    assert "timing is on" in prompt.type("\\timing")
    assert "expanded rows are on" in prompt.type("\\x")
    rows = prompt.type("SELECT tensor, dtype FROM m.tensors LIMIT 1;")
    assert "-[ row 1 ]" in rows and "dtype   BF16" in rows and re.search(r"time: \d+\.\d{3} s", rows)
    assert prompt.leave() == 0
    assert "\\timing" in (tmp_path / ".local/share/arrow-quant/history").read_text()


def test_the_prompt_completes_and_keeps_to_the_width(tmp_path: Path) -> None:
    prompt = Prompt(tmp_path)
    shown = prompt.type("SELECT repeat('x', 300) AS x, * FROM m.tens\t LIMIT 3;")
    assert "3 rows" in shown
    table = shown[shown.index("---") :].splitlines()
    assert all(len(line) <= 80 for line in table), shown
    assert "left out in this width: " in shown
    assert prompt.leave() == 0
