"""What the commands of this package share."""

import logging
import sys
from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from transformers import HfArgumentParser

BAD_INPUT = (ValueError, OSError)


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Examples in a description keep their lines; every option says its default."""


def parse_options(groups: Sequence[Any], program: str, description: str | None, argv: Sequence[str] | None) -> Any:
    """
    The options of a command, from its flags: one instance of each of the dataclasses in `groups`.

    Raises:
        SystemExit: for flags that are none, and after `--help`.
    """
    parser = HfArgumentParser(
        list(groups),
        prog=f"python -m {program}",
        description=description,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    return parser.parse_args_into_dataclasses(list(sys.argv[1:] if argv is None else argv))


def run_command(command: Callable[[], Any]) -> int:
    """
    Runs a command; bad input makes one sentence on the standard error.

    Returns:
        The exit code: 0, or 2 for bad input.
    """
    console = Console(stderr=True)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)])
    try:
        command()
    except BAD_INPUT as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        console.print(
            f"Error: {' '.join(lines[:3]) or type(error).__name__}", soft_wrap=True, highlight=False, markup=False
        )
        return 2
    return 0
