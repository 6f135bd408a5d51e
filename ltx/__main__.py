"""`python -m ltx`, or `python path/to/ltx`: the pipeline without ComfyUI, for scripts and tests.

Exit status: 0 done, 1 failed, 2 bad input (one sentence on standard error), 130 interrupted.
"""

from __future__ import annotations

import functools
import os
import runpy
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if not __package__:
    # By its path, as for a Python that looks for modules in its own folders alone: that of the portable ComfyUI. This
    # folder leaves the path, because its modules have names of other libraries.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    runpy.run_module("ltx", run_name="__main__", alter_sys=True)

from . import terminal
from .errors import INTERRUPTED, InputError

if TYPE_CHECKING:
    from .pipeline import Result


def _end(*_: object) -> None:
    print(INTERRUPTED, file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    terminal.steady_streams()
    # Nothing is open until `run_job` starts, and what it imports takes seconds: a signal ends the program at once.
    terminal.on_end(_end)

from . import versions  # noqa: E402 - it imports only Python's own library
from .arguments import checked, parser  # noqa: E402
from .tools import doctor, download  # noqa: E402

COMMANDS = {"doctor": doctor.main, "download": download.main}


def command(name: str, argv: Sequence[str]) -> int:
    """Runs one of COMMANDS and returns its exit status."""
    terminal.on_end(signal.default_int_handler)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text
    try:
        return COMMANDS[name](list(argv), functools.partial(print, flush=True))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as in `… | head`: there is no output to write to any more
        os._exit(1)


def leave(status: int) -> NoReturn:
    """Ends the program. What it was to do is done or told, so a signal no longer counts: it would end in a traceback
    out of some library's own ending."""
    terminal.on_end(signal.SIG_IGN)
    sys.exit(status)


if __name__ == "__main__" and sys.argv[1:2] and sys.argv[1] in COMMANDS:  # they work even if the imports below fail
    leave(command(sys.argv[1], sys.argv[2:]))

if __name__ == "__main__" and (wrong := versions.problem()):
    print(wrong, file=sys.stderr)
    sys.exit(1)


def main(argv: Sequence[str] | None = None, job: Callable[..., Result] | None = None) -> int:
    """Checks the command line, runs its job and returns the exit status. job: as for `headless.run_job`."""
    arguments = parser().parse_args(argv)
    try:
        request = checked(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    # This comes before the import of torch and transformers, whose warnings are for programmers and not for users.
    warnings.filterwarnings("ignore")
    from . import headless

    return headless.run_job(arguments, request, job)


if __name__ == "__main__":
    leave(main())
