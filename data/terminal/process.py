"""A command as a process: signals, one message for an error the user can act on, and its exit code."""

from __future__ import annotations

import atexit
import errno
import gc
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import typer

from l2d.data.errors import L2DError
from l2d.data.terminal.errors import TyperUsageError, in_our_voice
from l2d.data.terminal.progress import say

OBJECTS = 200_000  # that are made before cycles among them are looked for: more than all imports make
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; not an Exception, so that nothing on the way takes it for an agent's failure."""


def run_as_command(run: Callable[[], object], *, again: list[str] | None = None) -> NoReturn:
    """Call ``run`` and exit: with 0, with the code of its error, or with 128 and the number of a signal.

    Args:
        again: the words that go on with what was interrupted; None where another process says so.
    """

    def interrupt(number: int, _: object) -> None:
        raise Interrupted(number)

    gc.set_threshold(OBJECTS, 10, 10)  # Python's 700 looks at modules again and again while they are imported
    atexit.register(settle)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    try:
        code = run()
        sys.stdout.flush()  # here, where a full disk can still be told
        sys.exit(code if isinstance(code, int) else 0)
    except L2DError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except TyperUsageError as error:  # a wrong option or argument
        ours = in_our_voice(error)
        if ours is None:
            error.show()  # the help, of a command that was given nothing
        else:
            say(f"error: {ours}")
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our stdout, `head` say, has enough
        _drop_stdout()
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in _NO_SPACE or error.filename is not None:
            raise
        say(
            f"error: the output cannot be written: {error.strerror}\n  next:  free some space and run the command again"
        )
        _drop_stdout()
        sys.exit(3)
    except Interrupted as stopped:
        if again is not None:
            say(f"\ninterrupted; what is finished is kept. To go on: {shlex.join(again)}")
        sys.exit(128 + stopped.args[0])


def settle() -> None:
    """Have what is there looked at no more for cycles: at the end the system takes it back anyway, 50 ms sooner.

    Before DuckDB is loaded, which counts what is left of it and would say so; and so would Triton, which torch's
    optimizers import.
    """
    if not {"duckdb", "torch"} & sys.modules.keys():
        gc.freeze()


def _drop_stdout() -> None:
    """What is still in the buffer goes nowhere, rather than failing once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
