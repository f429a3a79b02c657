"""Pictures: a grid of samples, samples before and after training, the reward curve."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cluster.watch.curves import Points, series, smooth
from cluster.watch.evaluation import Evaluation, ScoredSample
from policy.errors import UserError

PAPER, INK, FAINT = (255, 255, 255), (32, 36, 42), (116, 122, 132)
RULE, PASSED, FAILED = (228, 231, 235), (34, 160, 90), (222, 70, 70)
GAP = 10
FRAME = 3


def fit(image: np.ndarray, cell: int) -> Image.Image:
    """The image at about `cell` pixels: a small one enlarged by a whole factor with hard edges, a
    large one reduced smoothly."""
    picture = Image.fromarray(image).convert("RGB")
    longest = max(picture.size)
    if longest > cell:
        width, height = (max(1, round(side * cell / longest)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    factor = max(1, cell // longest)
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def grid(
    images: Sequence[np.ndarray], captions: Sequence[str] | None, columns: int, cell: int = 96
) -> Image.Image:
    """Images in rows of `columns`, each in a cell of `cell` pixels with its caption wrapped under it.

    Cells are `cell` + 10 pixels apart; a row is as high as its longest caption, of four lines at most.
    """
    if not images:
        raise UserError("there is no image to make a grid of")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    font = _font(max(11, cell // 8))
    line = _line_height(font)
    columns = min(columns, len(images))
    wrapped = [_wrap(text, font, cell, 4) for text in captions] if captions else [[] for _ in images]
    rows = [range(i, min(i + columns, len(images))) for i in range(0, len(images), columns)]
    heights = [cell + max(len(wrapped[i]) for i in row) * line + (4 if captions else 0) for row in rows]

    size = (columns * (cell + GAP) + GAP, sum(heights) + GAP * (len(rows) + 1))
    canvas = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(canvas)
    top = GAP
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = GAP + column * (cell + GAP)
            picture = fit(images[i], cell)
            x, y = left + (cell - picture.width) // 2, top + (cell - picture.height) // 2
            canvas.paste(picture, (x, y))
            for n, text in enumerate(wrapped[i]):
                pen.text((left, top + cell + 4 + n * line), text, INK, font)
        top += height + GAP
    return canvas


# --- before and after ----------------------------------------------------------------------------

_CELL, _TEXT, _EACH = 112, 168, 2  # an image, the prompt's column, images of a prompt on each side
_COT_FONT, _COT_LINES = 19, 6  # twice as large as seen


def before_after(before: Evaluation, after: Evaluation, count: int = 16) -> Image.Image:
    """Up to `count` prompts that both evaluations share, spread evenly over them and not picked by
    result: each with its first two images before and after, framed green if every expert's pass
    threshold was reached and red if not, and under each the semantic CoT that it was drawn from."""
    old, new = before.by_prompt(), after.by_prompt()
    shared = [id for id in old if id in new]
    if not shared:
        raise UserError(
            f"the evaluations of steps {before.step} and {after.step} have no prompt in common"
        )
    chosen = spread(shared, count)
    each = min(_EACH, max(max(len(old[id]), len(new[id])) for id in chosen))
    columns = 1 if len(chosen) < 6 else 2
    side = each * (_CELL + GAP) - GAP
    starts = _TEXT + GAP, _TEXT + side + 3 * GAP  # where each evaluation's images begin
    width = _TEXT + 2 * side + 3 * GAP  # of one prompt with its pictures
    head, rows = 58, -(-len(chosen) // columns)
    stacks = [chosen[n * rows : (n + 1) * rows] for n in range(columns)]
    heights = [[_row_height((old[id], new[id]), each) for id in stack] for stack in stacks]
    size = (columns * width + (columns - 1) * 3 * GAP + 4 * GAP, head + max(map(sum, heights)) + GAP)

    # Drawn at twice the size: README viewers scale it to the column's width on dense screens.
    canvas = Image.new("RGB", (size[0] * 2, size[1] * 2), PAPER)
    pen = ImageDraw.Draw(canvas)
    for column, stack in enumerate(stacks):
        left, top = 2 * GAP + column * (width + 3 * GAP), head
        for evaluation, x in zip((before, after), starts, strict=True):
            _heading(pen, evaluation, (left + x, GAP + 4))
        for id, height in zip(stack, heights[column], strict=True):
            pen.line((left * 2, top * 2 - 8, (left + width) * 2, top * 2 - 8), RULE, 2)
            _prompt(pen, old[id][0].prompt.text, (left, top))
            for group, x in zip((old[id], new[id]), starts, strict=True):
                for n, scored in enumerate(group[:each]):
                    at = left + x + n * (_CELL + GAP), top
                    _framed(canvas, pen, scored, at)
                    _cot(pen, scored, (at[0], top + _CELL + 3))
            top += height
    return canvas


def _row_height(groups: Iterable[Sequence[ScoredSample]], each: int) -> int:
    """The height of a prompt's pictures with the longest of their CoTs."""
    lines = max(len(_cot_lines(scored)) for group in groups for scored in group[:each])
    return _CELL + 3 + lines * _line_height(_font(_COT_FONT)) // 2 + GAP + 2


def _cot_lines(scored: ScoredSample) -> list[str]:
    return _wrap(scored.sample.cot_text, _font(_COT_FONT), _CELL * 2, _COT_LINES)


def _cot(pen: ImageDraw.ImageDraw, scored: ScoredSample, at: tuple[int, int]) -> None:
    font = _font(_COT_FONT)
    for n, line in enumerate(_cot_lines(scored)):
        pen.text((at[0] * 2, at[1] * 2 + n * _line_height(font)), line, FAINT, font)


def spread(items: Sequence[str], count: int) -> list[str]:
    """At most `count` of the items, evenly spaced, in their order."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _heading(pen: ImageDraw.ImageDraw, evaluation: Evaluation, at: tuple[int, int]) -> None:
    accuracy = evaluation.metrics()["eval/strict_accuracy"]
    x, y = at[0] * 2, at[1] * 2
    pen.text((x, y), f"step {evaluation.step}", INK, _font(28))
    pen.text((x, y + 36), f"{accuracy:.0%} of {len(evaluation.scored)} right", FAINT, _font(22))


def _prompt(pen: ImageDraw.ImageDraw, text: str, at: tuple[int, int]) -> None:
    font = _font(26)
    lines = _wrap(text, font, _TEXT * 2, 5)
    height = len(lines) * _line_height(font)
    for n, line in enumerate(lines):
        y = at[1] * 2 + _CELL - height // 2 + n * _line_height(font)
        pen.text((at[0] * 2, y), line, INK, font)


def _framed(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, scored: ScoredSample, at: tuple[int, int]
) -> None:
    x, y, edge = at[0] * 2, at[1] * 2, _CELL * 2
    color = PASSED if scored.passed else FAILED
    pen.rounded_rectangle((x, y, x + edge - 1, y + edge - 1), 8, PAPER, color, FRAME * 2)
    picture = fit(scored.sample.image, edge - 4 * FRAME)
    canvas.paste(picture, (x + (edge - picture.width) // 2, y + (edge - picture.height) // 2))


# --- text ----------------------------------------------------------------------------------------


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # true when a size is given
    return font


def _line_height(font: ImageFont.FreeTypeFont) -> int:
    ascent, descent = font.getmetrics()
    return ascent + descent + 2


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels, `most` of them; a word that is too long is broken, a text
    that is too long ends in "..."."""
    lines, line = [], ""
    for word in text.split():
        while word:
            candidate = f"{line} {word}" if line else word
            if font.getlength(candidate) <= width:
                line, word = candidate, ""
            elif line:
                lines.append(line)
                line = ""
            else:
                cut = max(1, next(n for n in range(len(word)) if font.getlength(word[: n + 1]) > width))
                lines.append(word[:cut])
                word = word[cut:]
    lines += [line] if line else []
    if len(lines) > most:
        lines = lines[:most]
        while lines[-1] and font.getlength(lines[-1] + "...") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return lines


# --- the reward curve ----------------------------------------------------------------------------


def reward_curve(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training reward, and reward and accuracies of the evaluations, from the lines of
    `metrics.jsonl` (`curves.read_metrics`) into a picture; its format is the path's suffix."""
    import matplotlib.figure  # slow to import, and a run draws this once

    curves = series(metrics)
    figure = matplotlib.figure.Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.add_subplot()
    if training := curves.get("reward/mean"):
        _plot(axes, training, color="#3b6fd4", alpha=0.25, linewidth=1)
        _plot(axes, smooth(training), color="#3b6fd4", linewidth=2, label="training reward")
    for name, label, marker, color in (
        ("eval/reward", "evaluation reward", "o", "#1b3f8b"),
        ("eval/strict_accuracy", "strict accuracy", "s", "#d9762b"),
        ("eval/cot_accuracy", "plan accuracy", "^", "#2c9b66"),
    ):
        if points := curves.get(name):
            _plot(axes, points, color=color, marker=marker, markersize=5, linewidth=1, label=label)
    if not axes.lines:
        raise UserError("there is no reward to draw yet: no step and no evaluation is recorded")
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa1ab")
    axes.tick_params(color="#9aa1ab", labelcolor="#4a505a")
    axes.grid(axis="y", color="#e6e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=4, fontsize=9)
    figure.savefig(path, dpi=160)


def _plot(axes, points: Points, **look) -> None:
    axes.plot([step for step, _ in points], [value for _, value in points], **look)
