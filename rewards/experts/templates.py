"""The texts that vision-language models are asked with: files beside this one, or a user's own."""

from pathlib import Path

from policy.errors import UserError

_FOLDER = Path(__file__).parent / "templates"
PROMPT = "{prompt}"
IMAGE = "<image>"


def read_template(path: str | None, default: str, *placeholders: str) -> str:
    """A template to the letter; `path` None: the default one of this name.

    Raises UserError if there is no such file, or if it lacks a placeholder.
    """
    file = Path(path) if path else _FOLDER / default
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a template that can be read: {error}") from None
    for placeholder in placeholders:
        if text.count(placeholder) != 1:
            raise UserError(f"{file}: the template must contain {placeholder} once")
    return text


def halves(template: str) -> tuple[str, str]:
    """What stands before the image, and after it."""
    head, _, tail = template.partition(IMAGE)
    return head, tail
