"""Where numbers go: the console in a terminal, a pipe and without one; progress.csv."""

import fcntl
import io
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from jaxrl.logs import Console, CSVSink, console, read_csv, readable
from jaxrl.logs.columns import STEPS as STEP

ROW = {
    "rollout/ep_rew_mean": 48600.4,
    "rollout/ep_len_mean": 391.25,
    "rollout/success_rate": 0.97,
    "rollout/final/goal_speed": 0.3,
    "train/approx_kl": 0.0054,
    "train/value_loss": 4.73,
    "train/learning_rate": 1e-5,
    "time/fps": 48600.123,
}
JUDGED = {"eval/mean_reward": 516.4, "eval/mean_ep_length": 400.0, "eval/success_rate": 1.0}

SHOW = f"""
import os
from jaxrl.logs import Console
shown = Console(1_000_000, start=900_000)
for step in (920_000, 1_020_000):
    shown.write(step, {ROW | JUDGED!r})
shown.print("a message")
shown.close()
os._exit(0)  # what Python does with a broken stream when it ends is not the console's
"""


def in_a_terminal(width):
    """What the console writes to a terminal of so many columns, without colours."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", SHOW], stderr=child, env=env) as process:
        os.close(child)
        output = b""
        while True:
            try:
                output += (read := os.read(parent, 65536))
            except OSError:  # how Linux says that the other side is closed
                break
            if not read:
                break
    os.close(parent)
    assert process.returncode == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_shows_bar_and_eta_whole(width):
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", in_a_terminal(width))]
    bars = [line for line in lines if "ETA" in line]
    assert bars and all(len(line) <= width for line in lines)
    assert not any("…" in line for line in lines)
    assert re.match(r"100% ━+ 1,020,000/1,020,000 steps 0:00:0\d ETA 0:00:00$", bars[-1])
    assert any("return 48,600  success 0.97  length 391.2  steps/s 48,600" in x for x in lines)


def in_a_pipe(monkeypatch, steps, rows, **settings):
    stream, now = io.StringIO(), iter(range(0, 10_000, 100))
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console.time, "monotonic", lambda: next(now))
    shown = Console(1000, **settings)
    for step, row in zip(steps, rows, strict=True):
        shown.write(step, row)
    shown.close()
    return stream.getvalue()


@pytest.mark.parametrize("start", [0, 900])
def test_a_pipe_shows_lines_and_no_negative_time(start, monkeypatch):
    text = in_a_pipe(monkeypatch, [start + 50, start + 100, start + 150], [ROW] * 3, start=start)
    first, *_, last = text.splitlines()
    # What the first chunk took says nothing, since it was compiled.
    assert f"{start + 50:,}/1,000 steps  ETA ?" in first and "-" not in text
    assert "ETA 0:00:00" in last if start else "ETA 1:" in last
    assert "1,050/1,050" in last if start else "150/1,000" in last


def test_the_table_is_short_or_whole(monkeypatch):
    short = in_a_pipe(monkeypatch, [500], [ROW | JUDGED])
    lines = short.splitlines()[1:]
    assert len(lines) < 10
    assert re.search(r"return +516.4 +48,600\n +success +1 +0.97\n +length +400 +391.2", short)
    assert re.search(r"KL +0.0054\n +value loss +4.73\n +steps/s +48,600", short)
    whole = in_a_pipe(monkeypatch, [500], [ROW | JUDGED], table="full")
    assert re.search(r"final/goal_speed +0.3", whole)
    assert re.search(r"learning_rate +0.00001", whole)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&- >&-"])
def test_a_broken_stderr_is_no_error(redirection):
    command = f'exec "$0" -c "$1" {redirection}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, SHOW], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_numbers_are_written_as_people_do():
    written = {
        48_600.2: "48,600",
        1_234_567.0: "1,234,567",
        516.4127: "516.4",
        -0.05: "-0.05",
        100.0: "100",
        0.0: "0",
        1e-5: "0.00001",
        3.21e-9: "3.21e-9",
        2e15: "2e15",
        math.inf: "inf",
    }
    assert {value: readable(value) for value in written} == written
    assert readable(math.nan) == "-" and readable(-480.3, 2) == "-480"
    assert readable(0.99999) == "1" and readable(-0.0) == "0"


GARBAGE = b"\x00\xff\x89PNG\r\n1,2\n\n300,x,\n400," + b"9" * 200_000 + b",1\n"


def test_rows_that_are_none_are_counted_and_left_out(tmp_path):
    path = tmp_path / "progress.csv"
    path.write_bytes(f"{STEP},a,b\r\n100,1,\r\n".encode() + GARBAGE + b"200,,2\n500,1,1")
    rows, bad = read_csv(path)
    assert [row[STEP] for row in rows] == ["100", "200"] and bad == 5
    path.write_bytes(GARBAGE)
    assert read_csv(path)[0] == []


def test_a_resume_keeps_the_readable_rows(tmp_path, capsys):
    path = tmp_path / "progress.csv"
    path.write_bytes(f"{STEP},a,b\r\n100,1,2\r\n".encode() + GARBAGE + b"200,,3\n300,2,2\n")
    sink = CSVSink(path, resume_step=200)
    sink.write(250, {STEP: 250, "a": 0.5, "new": 1.0})
    sink.close()
    assert path.read_text().splitlines() == [
        f"{STEP},a,b,new", "100,1,2,", "200,,3,", "250,0.5,,1"
    ]  # fmt: skip
    assert re.fullmatch(
        r"warning: .*progress.csv: dropped 4 unreadable lines\n", capsys.readouterr().err
    )
