"""`jaxrl COMMAND`, and what makes a shell complete it."""

import subprocess
import sys

import pytest

from jaxrl import commands
from jaxrl.commands import completion
from jaxrl.errors import UserError


def test_commands_are_listed_and_unknown_ones_refused(capsys):
    assert commands._dispatch(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in commands.COMMANDS)
    with pytest.raises(UserError, match=r"unknown command 'trian' \(known: train, "):
        commands._dispatch(["trian"])
    assert commands._dispatch(["check", "--help"]) == 0


def test_the_package_itself_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "jaxrl", "check", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage: python -m jaxrl.check" in done.stdout


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["jaxrl", "ev"], "evaluate"),
        (["jaxrl", "train", "--ppo.clip"], "--ppo.clip_range"),
        (["jaxrl", "train", "--env.name", "ball"], "ballbot"),
        (["jaxrl", "train", "--algo", "s"], "sac"),
    ],
)
def test_bash_completes_commands_tasks_and_settings(words, found, capsys):
    assert completion.main(["bash"]) == 0
    script = capsys.readouterr().out
    quoted = " ".join(f"'{word}'" for word in words)
    ask = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _jaxrl; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True)
    assert found in done.stdout.split(), done.stderr


def test_other_shells_are_refused():
    with pytest.raises(UserError, match="expected bash or zsh"):
        completion.main(["fish"])
