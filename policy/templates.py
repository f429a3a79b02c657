"""The two prompts of BiCoT (T2I-R1, arXiv 2505.00703, section 3): one asks for the semantic CoT, the
other for the image. Their wording lives in three text files that a user can replace.

| file | used for | placeholders |
|---|---|---|
| `system.txt` | system prompt of the semantic CoT; may be empty | |
| `semantic_cot.txt` | what the user asks for the semantic CoT | `{prompt}` |
| `image.txt` | what the user asks for the image | `{prompt}`, `{cot}` |
"""

from dataclasses import dataclass
from pathlib import Path

from policy.errors import UserError

DEFAULT_FOLDER = Path(__file__).parent / "templates"
BEGIN_OF_IMAGE = "<begin_of_image>"


@dataclass(frozen=True)
class Templates:
    system: str
    semantic_cot: str
    image: str

    def cot_conversation(self, prompt: str) -> str:
        """The text after which the model writes its semantic CoT."""
        return _conversation(self.system, self.semantic_cot.replace("{prompt}", prompt))

    def image_conversation(self, prompt: str, cot: str) -> str:
        """The text after which the model draws. A prompt that ends in "." gets no second one."""
        sentence = prompt.strip().removesuffix(".")
        # Fill the prompt last: a CoT that happens to contain "{prompt}" stays as it is.
        head, brace, tail = self.image.partition("{cot}")
        asked = head.replace("{prompt}", sentence) + (cot.strip() if brace else "")
        return _conversation("", (asked + tail.replace("{prompt}", sentence)).strip()) + (
            BEGIN_OF_IMAGE
        )


def _conversation(system: str, user: str) -> str:
    """Janus's conversation format, down to the blank lines."""
    head = f"{system}\n\n" if system else ""
    return f"{head}User: {user}\n\nAssistant:"


def load_templates(folder: str | Path | None = None) -> Templates:
    """Templates from a folder; a file that the folder lacks is the default one.

    Raises UserError if the folder is missing or a text lacks its placeholder.
    """
    folder = Path(folder) if folder else DEFAULT_FOLDER
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of prompt templates")

    def text(name: str, *placeholders: str) -> str:
        path = folder / name
        path = path if path.exists() else DEFAULT_FOLDER / name
        content = path.read_text(encoding="utf-8").strip()
        for placeholder in placeholders:
            if placeholder not in content:
                raise UserError(f"{path}: the template must contain {placeholder}")
        return content

    return Templates(
        system=text("system.txt"),
        semantic_cot=text("semantic_cot.txt", "{prompt}"),
        image=text("image.txt", "{prompt}", "{cot}"),
    )
