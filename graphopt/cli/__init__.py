"""The command line: one module a command. A module parses, calls the core and prints; it holds no logic.

Commands are imported when they are asked for, and what they need only inside their functions, so that ``--help`` is
quick. Errors end here: one short paragraph on stderr and the exit code that ``errors.py`` gives; a traceback only with
``-v``.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import NoReturn

import click

from graphopt import __version__
from graphopt.errors import GraphoptError

COMMANDS = (
    "optimize",
    "inspect",
    "compare",
    "bench",
    "package",
    "sensitivity",
    "passes",
    "targets",
    "recipes",
    "doctor",
    "demo",
)

EXIT_CODES = """\b
Exit codes:
  0  done
  1  a defect in graphopt
  2  wrong usage
  3  the model cannot be read or run
  4  the data does not fit the model
  5  the budget or the regression bound was not met, or the target computes wrongly
  6  a runtime or an extra is missing"""


class _Commands(click.Group):
    """Finds a command in the module of its name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{cmd_name}", __name__).command
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Answer an unknown command with the nearest one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from graphopt.registry import unknown_name

            raise unknown_name("command", args[0], COMMANDS)
        return super().resolve_command(ctx, args)


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(cls=_Commands, context_settings=_SETTINGS, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="graphopt")
def graphopt() -> None:
    """ONNX in, a smaller or faster ONNX out, with the evidence.

    \b
    graphopt demo                                  see it work on a small model
    graphopt optimize model.onnx                   write model.opt.onnx, checked and timed
    graphopt optimize model.onnx --eval test.npz --report out/
    graphopt COMMAND --help                        options and examples of a command
    """


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    verbose = _verbose(sys.argv)
    logging.basicConfig(level=logging.DEBUG if verbose else logging.ERROR, format="%(name)s: %(message)s", stream=sys.stderr)
    if sys.argv[1:2] and sys.argv[1] in COMMANDS and not {"-h", "--help"} & set(sys.argv):
        from .startup import import_quickly

        import_quickly()
    try:
        code = graphopt.main(standalone_mode=False)
    except click.exceptions.Abort:
        resumable = sys.argv[1:2] == ["optimize"]
        click.echo(f"interrupted{': the same command with --resume continues' if resumable else ''}", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except GraphoptError as error:
        if verbose:
            logging.getLogger(__name__).debug("traceback", exc_info=True)
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing more can be said to it
        sys.exit(0)
    except Exception as error:
        if verbose:
            logging.getLogger(__name__).debug("traceback", exc_info=True)
        click.echo(f"error: a defect in graphopt: {type(error).__name__}: {error}", err=True)
        click.echo("Run again with -v to see where, and please report it with the model if you can.", err=True)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _verbose(arguments: list[str]) -> bool:
    return bool({"-v", "--verbose"} & set(arguments[1:]))
