"""`jaxrl completion SHELL`: print a script for tab completion in bash or zsh."""

from __future__ import annotations

from jaxrl.errors import UserError

USAGE = """\
usage: jaxrl completion bash|zsh

Prints a script with which the shell completes commands, tasks and settings of jaxrl.
To install it permanently for bash:
  jaxrl completion bash >> ~/.bashrc
"""

# The script contains the names of all settings and tasks: looking them up takes seconds.
BASH = """\
_jaxrl() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words
  case "$COMP_CWORD $before" in
    1*) words="{commands}" ;;
    *--env.name) words="{tasks}" ;;
    *--algo) words="{algorithms}" ;;
    *) [[ ${{COMP_WORDS[1]}} == train && $word == --* ]] && words="{settings}" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [[ ${{#COMPREPLY[@]}} -gt 0 ]] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _jaxrl jaxrl
"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def main(argv: list[str]) -> int:
    if argv in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    if argv not in (["bash"], ["zsh"]):
        raise UserError(f"completion: got {' '.join(argv) or 'nothing'}, expected bash or zsh")
    from jaxrl import envs
    from jaxrl.algos import ALGORITHMS
    from jaxrl.commands import COMMANDS
    from jaxrl.config import resolve

    options: dict[str, None] = {}
    for task in (name for name in envs.names() if ":" not in name):
        for algo in ALGORITHMS:
            for rows in resolve({"env": task, "algo": algo}, platform="none").describe():
                options |= dict.fromkeys(f"--{row[0]}" for row in rows)
    script = BASH.format(
        commands=" ".join(COMMANDS),
        tasks=" ".join(name for name in envs.names() if ":" not in name),
        algorithms=" ".join(ALGORITHMS),
        settings=" ".join(["--config", "--resume", "--print_config", "--help", *options]),
    )
    print(ZSH + script if argv == ["zsh"] else script, end="")
    return 0
