"""The command line as tests call it: as a program, or within the test's process, which is quicker."""

import contextlib
import io
import sys
from dataclasses import dataclass
from unittest import mock

import processes

SCRIPT = "from shazam_fast.cli.app import main; main()"


def run_program(*arguments, width=120, **options):
    """Start `shazam-fast` as a program."""
    return processes.run(SCRIPT, *arguments, COLUMNS=str(width), **options)


@dataclass
class Run:
    """What a command printed, and its exit code."""

    stdout: str
    stderr: str
    returncode: int


def call(*arguments, width=120):
    """Run `shazam-fast` in this process."""
    from shazam_fast.cli.app import main
    from shazam_fast.cli.printing import console

    stdout, stderr, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["shazam-fast", *map(str, arguments)]),
        mock.patch.object(console, "_width", width),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=stderr)
    return Run(stdout.getvalue(), stderr.getvalue(), code)
