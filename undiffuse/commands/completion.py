"""Print a script that completes commands, options and solvers in bash, zsh or fish."""

from __future__ import annotations

import argparse
import shlex

from . import words

KEPT = "nothing was written"
EXAMPLES = """\
  undiffuse completion bash > ~/.undiffuse.bash
  undiffuse completion zsh > ~/.undiffuse.zsh
  undiffuse completion fish > ~/.config/fish/completions/undiffuse.fish

In ~/.bashrc, or in ~/.zshrc below compinit, add `. ~/.undiffuse.bash` (`.zsh`)."""


FILES = ("--solver", "--solvers", "--features", "--peers")
"""Options whose values may be files as well."""


def options(p: argparse.ArgumentParser) -> None:
    p.add_argument("shell", choices=["bash", "zsh", "fish"], help="whose script")


def run(args: argparse.Namespace) -> None:
    from ..cli import build

    print({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](_words(build())), end="")


def _words(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """'command kind' -> what may follow, and 'command --option' -> its values, by the parser."""
    found: dict[str, list[str]] = {}

    def walk(one: argparse.ArgumentParser, path: str) -> None:
        here = found.setdefault(path, [])
        for action in one._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    here.append(name)
                    walk(inner, f"{path} {name}".strip())
                continue
            here += [o for o in action.option_strings if o.startswith("--")]
            if action.choices is not None:
                values = [str(c) for c in action.choices]
                for option in action.option_strings:
                    found[f"{path} {option}"] = values
                here += [] if action.option_strings else values
        for option, known in registries.items():
            if option in here:
                found.setdefault(f"{path} {option}", known)

    registries = _registries()
    walk(parser, "")
    found["sample --format"] = words.SHARDS
    found["fid --metrics"] = words.FID["metrics"]
    found["bench"] += found["bench nfe"]  # which `bench` alone is
    for option in [key for key in found if key.startswith("bench nfe --")]:
        found[option.replace(" nfe", "")] = found[option]
    return found


def _registries() -> dict[str, list[str]]:
    """Values of the options that argparse is told no choices of."""
    from ..solvers import names

    return {
        "--solver": names(),
        "--solvers": names(),
        "--grid": [*words.GRIDS, *words.MEASURED],
        "--engine": ["local", "torchrun", "ray"],
        "--device": ["auto", "cpu", "cuda", "mps"],
        "--process": words.PROCESSES,
        "--predicts": words.READOUTS,
        "--network": words.NETWORKS,
        "--loss": words.OBJECTIVES,
        "--kind": words.STATISTICS,
        "--targets": words.TARGETS,
        "--peers": words.LIBRARIES,
        "--metrics": words.MEASURES,
        "--features": words.EXTRACTORS,
        "--protocol": words.FID["protocols"],
    }


def _bash(found: dict[str, list[str]]) -> str:
    cases = "\n".join(
        f"    {shlex.quote(path)}) words={shlex.quote(' '.join(values))} ;;"
        for path, values in found.items()
    )
    return f"""_undiffuse() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}"
  local path="" word words="" lead=""
  [[ "$before" = "=" ]] && before="${{COMP_WORDS[COMP_CWORD-2]}}"
  [[ "$current" = "=" ]] && current=""
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$word" in -*) break ;; esac
    _undiffuse_words "${{path:+$path }}$word" && path="${{path:+$path }}$word" || break
  done
  if _undiffuse_words "$path $before"; then
    [[ "$current" = *,* ]] && lead="${{current%,*}},"  # a list: a,b,c
    COMPREPLY=($(compgen -P "$lead" -W "$words" -- "${{current##*,}}"))
    case "$before" in {"|".join(FILES)}) ;; *) return ;; esac  # files are values, too
  else
    _undiffuse_words "$path"
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  fi
  COMPREPLY+=($(compgen -f -- "$current"))
}}
_undiffuse_words() {{
  case "$1" in
{cases}
    *) return 1 ;;
  esac
}}
complete -o filenames -F _undiffuse undiffuse
"""


def _zsh(found: dict[str, list[str]]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(found)


def _fish(found: dict[str, list[str]]) -> str:
    lines = []
    for path, values in found.items():
        *commands, last = path.split(" ") if path else [""]
        if last.startswith("--"):
            on = " ".join(commands)
            lines.append(
                f"complete -c undiffuse -n '__fish_seen_subcommand_from {on}' -l {last[2:]} "
                f"-{'r' if last in FILES else 'x'}a {shlex.quote(' '.join(values))}"
            )
            continue
        on = f"__fish_seen_subcommand_from {last}" if path else "__fish_use_subcommand"
        plain = " ".join(v for v in values if not v.startswith("--"))
        if plain:
            lines.append(f"complete -c undiffuse -n '{on}' -a {shlex.quote(plain)}")
        lines += [
            f"complete -c undiffuse -n '{on}' -l {v[2:]}" for v in values if v.startswith("--")
        ]
    return "\n".join(lines) + "\n"
