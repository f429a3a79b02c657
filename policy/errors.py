"""The one exception that is meant for people, and what other exceptions say to them."""

import re

_LONGEST = 1000  # characters


class UserError(Exception):
    """Something a person can mend: the message says what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """


def in_one_line(error: BaseException) -> str:
    """An exception for people: its kind and the last line of its message, because one from another
    process holds a whole traceback; cut, and made fit for files, for it may hold anybody's words. Of
    a UserError, which may be its cause, the message alone."""
    cause = getattr(error, "cause", None) or error
    if isinstance(cause, UserError):
        return str(cause)
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    if not lines:
        return type(cause).__name__
    last = lines[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")
    of_a_traceback = len(lines) > 1 and (last != lines[-1] or re.match(r"[\w.]+: ", last))
    told = last if of_a_traceback else f"{type(cause).__name__}: {last}"
    return told[:_LONGEST].encode(errors="backslashreplace").decode()
