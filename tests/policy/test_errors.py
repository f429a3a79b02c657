import pytest

from policy.errors import UserError, in_one_line

pytestmark = pytest.mark.unit


class Remote(Exception):
    """As Ray's: the traceback of the other process, and the exception there as the cause."""

    def __init__(self, text: str, cause: Exception | None = None):
        super().__init__(text)
        self.cause = cause


TRACEBACK = "ray::work() (pid=7)\n  File work.py, line 3\n{kind}: the disk is full\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("the disk is full"), "OSError: the disk is full"),
        (ValueError(), "ValueError"),
        (ValueError("several\n\nlines "), "ValueError: lines"),
        (UserError("mend it"), "mend it"),
        (Remote("any", UserError("mend it")), "mend it"),
        (Remote("any", OSError("the disk is full")), "OSError: the disk is full"),
        (Remote(TRACEBACK.format(kind="OSError")), "OSError: the disk is full"),
        (Remote(TRACEBACK.format(kind="policy.errors.UserError")), "the disk is full"),
    ],
)
def test_an_exception_is_one_line(error, line):
    assert in_one_line(error) == line
