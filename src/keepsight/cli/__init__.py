"""The command line: reads arguments, calls recipes, prints. Heavy imports wait until a command needs them.

Exit codes: 0 fine, 1 `data check` found errors in the data or a cell of a sweep or comparison failed, 2 bad input or usage, 130
interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from keepsight.cli import (
    compare,
    data,
    demo_data,
    forgetting,
    models,
    plan,
    probe,
    report,
    style,
    sweep,
    tune,
    ui,
    visft,
)
from keepsight.cli.speech import OneSentenceGroup, UsageError, say_error, set_up_logging, usage_sentence
from keepsight.core.errors import UserError
from keepsight.core.progress import console

app = typer.Typer(
    name="keepsight",
    cls=OneSentenceGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Adapt a pretrained vision model to your own images with few labels, and see in honest figures what it gained.\n\n"
    "Start with [bold]keepsight compare demo[/bold], then [bold]keepsight tune[/bold] with a folder that holds one "
    "subfolder a class (images without a label go into [bold]unlabelled/[/bold]).",
)
app.command()(tune.tune)
for command in (
    models.predict,
    models.evaluate,
    models.embed,
    models.export,
    forgetting.forgetting,
    style.style,
    models.backbones,
):
    app.command()(command)
app.add_typer(sweep.sweep_app, name="sweep")
app.add_typer(compare.compare_app, name="compare")
app.command()(visft.visft)
app.command()(probe.probe)
app.command()(report.report)
app.command()(ui.ui)
app.add_typer(plan.plan_app, name="plan")
app.add_typer(data.data_app, name="data")
app.add_typer(data.cache_app, name="cache")
app.add_typer(demo_data.demo_data_app, name="demo-data")

_debug = False


def _version(wanted: bool) -> None:
    if wanted:
        from keepsight import __version__

        print(f"keepsight {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a user error.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the result and errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    global _debug
    del version
    _debug = debug
    set_up_logging(quiet)


def main() -> None:
    """Entry point: a user error is one sentence on stderr and exit code 2."""
    code: Any = 0
    try:
        code = app(standalone_mode=False, prog_name="keepsight")
    except UsageError as error:
        sentence = usage_sentence(error)
        if sentence is None:  # a group was called without a command: its help has been printed
            sys.exit(2)
        say_error(sentence)
        sys.exit(2)
    except UserError as error:
        if _debug:
            raise
        if "RANK" not in os.environ or not _said_by_main(error):
            say_error(str(error))
        sys.exit(2)
    except OSError as error:
        if _debug or (sentence := _about_the_disk(error)) is None:
            raise
        say_error(sentence)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    if code == 130:
        console.print("interrupted; the same command resumes the run")
    if isinstance(code, int) and code:
        sys.exit(code)


def _said_by_main(error: UserError) -> bool:
    """Whether the first of several processes says it, too."""
    from keepsight.core.processes import SharedError

    return isinstance(error, SharedError)


def _about_the_disk(error: OSError) -> str | None:
    """What the operating system refuses is not a fault of ours, where it is about room or permission."""
    import errno

    where = f" {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"Writing{where} failed, because the disk (or your quota) is full: make room, and start the same command again."
    if error.errno in (errno.EACCES, errno.EROFS):
        what = where or " a file"
        return f"The system refuses access to{what} ({error.strerror}): change its permissions or choose another place."
    return None
