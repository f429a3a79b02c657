"""The one exception whose message is for people, and other exceptions in one line."""

import re

_LONGEST = 1000  # characters


class UserError(Exception):
    """An error that a person can correct: the message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def in_one_line(error: BaseException) -> str:
    """An exception as one line: its type and the last line of its message, because one from another
    process holds a whole traceback. The line is cut to a length and made valid UTF-8. Of a UserError,
    which may be the cause, it is the message alone."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, UserError):
        return str(cause)
    lines = [each.strip() for each in str(cause).splitlines() if each.strip()]
    if not lines:
        return type(cause).__name__
    last = lines[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
    of_a_traceback = len(lines) > 1 and (last != lines[-1] or re.match(r"[\w.]+: ", last))
    line = last if of_a_traceback else f"{type(cause).__name__}: {last}"
    return line[:_LONGEST].encode(errors="backslashreplace").decode()
