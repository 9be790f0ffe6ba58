"""Options that several commands share, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _sizes(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    """Read ``NAME=SIZE``, repeated."""
    found = {}
    for value in values:
        name, equals, size = value.rpartition("=")
        if not (equals and name and size.isascii() and size.isdigit() and int(size) > 0):
            raise click.BadParameter(f"{value!r} is not NAME=SIZE with a size of at least 1")
        found[name] = int(size)
    return found


def verbose(command: _Command) -> _Command:
    """``-v``: read by ``cli.main``; declared here so that every command takes and explains it."""
    return click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show a traceback and what libraries log.")(
        command
    )


def as_json(command: _Command) -> _Command:
    """``--json``."""
    return click.option("--json", "json_", is_flag=True, help="Print JSON on stdout, and nothing else there.")(command)


def seed(command: _Command) -> _Command:
    """``--seed``."""
    return click.option("--seed", default=0, show_default=True, metavar="N", help="One seed, one result.")(command)


def dims(command: _Command) -> _Command:
    """``--dim``."""
    return click.option(
        "--dim",
        "dims",
        multiple=True,
        metavar="NAME=SIZE",
        callback=_sizes,
        help="Size of a dynamic dimension, by its symbol or INPUT:AXIS. Repeatable.",
    )(command)


def images(command: _Command) -> _Command:
    """``--images``."""
    return click.option(
        "--images",
        metavar="SPEC",
        help="How images become tensors: resize=256,crop=224,scale=255,mean=0.485:0.456:0.406,std=0.229:0.224:0.225,"
        "layout=nchw,channels=rgb,label-offset=0. x = (pixel / scale - mean) / std.",
    )(command)


def target(command: _Command) -> _Command:
    """``--target``, once."""
    return click.option(
        "--target", default="cpu", show_default=True, metavar="NAME", help="What the model is deployed to ('graphopt targets')."
    )(command)


def strict_provider(command: _Command) -> _Command:
    """``--strict-provider``."""
    text = "Exit 6 if a node would run on another provider than the target's, and name it."
    return click.option("--strict-provider", is_flag=True, help=text)(command)


def metric(command: _Command) -> _Command:
    """``--metric``."""
    return click.option(
        "--metric",
        metavar="NAME",
        help="top1, top5, agreement, cosine, f1, perplexity, mse or module:function. Default: top1; unlabelled: agreement.",
    )(command)
