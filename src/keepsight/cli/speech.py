"""How the command line speaks: logging, errors of one sentence, what was probably meant. Knows no command."""

from __future__ import annotations

import difflib
import logging
import os
import sys
from collections.abc import Iterable
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from keepsight.core.progress import console, log

# typer brings its own copy of click or the package click, by version: the classes are reached through what both publish.
UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""click's error for a wrong call; it carries the context of the command."""


DataSettings = Annotated[
    list[str] | None,
    typer.Argument(help="How the data is read, as key=value: label_column=kind, pixels.value_range=[0,4095]."),
]

_handlers: list[logging.Handler] = []


def set_up_logging(quiet: bool) -> None:
    """Log to stderr: everything, or errors alone; of several processes only the first one speaks."""
    for old in _handlers:  # main() may be called again in one process
        log.removeHandler(old)
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, show_level=False, log_time_format="[%X]"
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    silent = quiet or os.environ.get("RANK", "0") != "0"
    console.quiet = silent
    # The handler's own level: a run's log file gets everything, whatever is shown here.
    handler.setLevel(logging.ERROR if silent else logging.INFO)
    log.addHandler(handler)
    _handlers[:] = [handler]
    log.setLevel(logging.INFO)


def say_error(sentence: str) -> None:
    """One line on stderr, also with --quiet."""
    text = " ".join(sentence.split())
    Console(stderr=True, highlight=False).print(f"[bold red]error:[/bold red] {escape(text)}", soft_wrap=True)


def stdout() -> Console:
    """The console of results: as wide as the terminal, 132 columns in a file or pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 132)


def meant(word: str, words: Iterable[str]) -> str:
    """'did you mean X?', or what there is."""
    words = list(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(words)}."


class OneSentenceGroup(typer.core.TyperGroup):
    """A group of commands that names the nearest command for a misspelt one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """See click: the command that the first argument names."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            what = ctx.command_path
            raise UsageError(f"{what} has no command {name}: {meant(name, self.list_commands(ctx))}", ctx)
        return super().resolve_command(ctx, args)


def usage_sentence(error: Any) -> str | None:
    """A wrong call in one sentence with the way out; None where help was asked for by giving no arguments (it is printed)."""
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        message = error.format_message()  # older versions hold the help here, newer ones have printed it by now
        if message.strip():
            print(message, file=sys.stderr)
        return None
    ctx = error.ctx
    command = ctx.command_path if ctx is not None else "keepsight"
    if kind == "NoSuchOption":
        option = error.option_name
        own = [name for p in (ctx.command.params if ctx is not None else []) for name in p.opts]
        shared = [name for p in (ctx.find_root().command.params if ctx is not None else []) for name in p.opts]
        if option in shared and option not in own:
            return f"The option {option} comes before the command: keepsight {option} {command.partition(' ')[2]} ..."
        return f"There is no option {option}: {meant(option, [o for o in [*own, '--help'] if o.startswith('--')])}"
    text = error.format_message().strip()
    if "has no command" in text:
        return str(text)
    if kind == "MissingParameter" and error.param is not None:
        name = error.param.opts[0] if error.param.param_type_name == "option" else error.param.name.upper()
        return f"The {error.param.param_type_name} {name} is missing: '{command} --help' shows what it takes."
    return f"{text.rstrip('.')}: '{command} --help' shows what is expected."
