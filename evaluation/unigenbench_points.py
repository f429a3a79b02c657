"""The meaning of each test point of UniGenBench++ for the judge, in our own wording.

The points' names are those of the prompt files (CodeGoat24/UniGenBench at 49d0bce, CC BY 4.0). The
published judge has definitions of its own, which are not known here.
"""

ENGLISH = {
    "Style": "The image has the artistic style that the prompt names.",
    "World Knowledge": "What exists in the real world, a place, a person, a work, an animal, looks as"
    " it does there.",
    "Attribute - Quantity": "Exactly as many are there as the prompt says.",
    "Attribute - Expression": "The face of a person or a creature shows the emotion that is asked for.",
    "Attribute - Material": "The thing is made of the material that is asked for, and looks it.",
    "Attribute - Color": "The thing has the colour that is asked for.",
    "Attribute - Shape": "The thing has the shape that is asked for.",
    "Attribute - Size": "The thing is as large, long, thick or tall as is asked for, by itself or"
    " beside another.",
    "Action - Hand (Character/Anthropomorphic)": "A person, or a creature drawn as one, does with its"
    " hands what the prompt says.",
    "Action - Full-body (Character/Anthropomorphic)": "A person, or a creature drawn as one, does with"
    " its whole body what the prompt says.",
    "Action - Animal": "An animal does what the prompt says.",
    "Action - Contact Interaction": "Two or more do something together, or one to the other, and touch"
    " as the prompt says.",
    "Action - Non-contact Interaction": "Two or more do something together, or one to the other,"
    " without touching: a look, a pursuit, a talk.",
    "Action - State": "A thing or a creature is in the state that the prompt says: it hangs, floats,"
    " burns, sleeps.",
    "Relationship - Comparison": "The things differ in the way that the prompt says.",
    "Relationship - Composition": "A thing is made of, or put together from, what the prompt says.",
    "Relationship - Inclusion": "A thing is in or on another, or belongs to it, as the prompt says.",
    "Relationship - Similarity": "The things are alike in what the prompt says.",
    "Compound - Imagination": "What cannot be in the real world is there as the prompt imagines it.",
    "Compound - Feature Matching": "Each of several things has the features that the prompt gives to"
    " it, and not those of another.",
    "Entity Layout - Two-Dimensional Space": "The things are where the prompt says in the picture's"
    " plane: left, right, above, below.",
    "Entity Layout - Three-Dimensional Space": "The things are where the prompt says in depth: in"
    " front, behind, near, far.",
    "Grammar - Pronoun Reference": "What the prompt says of a pronoun is true of the one that the"
    " pronoun stands for.",
    "Grammar - Consistency": "What the prompt says of several together is true of each of them.",
    "Grammar - Negation": "What the prompt says is not there, or does not happen, is not in the image.",
    "Logical Reasoning": "The image shows what follows from the prompt by reasoning, though the"
    " prompt does not say it.",
    "Text Generation": "The image holds the words that the prompt quotes, readable and without a slip.",
}

_CHINESE_NAMES = {
    "风格": "Style",
    "世界知识": "World Knowledge",
    "属性-数量": "Attribute - Quantity",
    "属性-表情": "Attribute - Expression",
    "属性-材质": "Attribute - Material",
    "属性-颜色": "Attribute - Color",
    "属性-形状": "Attribute - Shape",
    "属性-大小": "Attribute - Size",
    "动作-人物/拟人手部动作": "Action - Hand (Character/Anthropomorphic)",
    "动作-人物/拟人全身动作": "Action - Full-body (Character/Anthropomorphic)",
    "动作-动物动作": "Action - Animal",
    "动作-实体间有接触互动": "Action - Contact Interaction",
    "动作-实体间无接触互动": "Action - Non-contact Interaction",
    "动作-状态": "Action - State",
    "关系-比较关系": "Relationship - Comparison",
    "关系-构成关系": "Relationship - Composition",
    "关系-包含关系": "Relationship - Inclusion",
    "关系-相似关系": "Relationship - Similarity",
    "复合考点-想象力": "Compound - Imagination",
    "复合考点-不同实体特征匹配": "Compound - Feature Matching",
    "实体布局-二维空间": "Entity Layout - Two-Dimensional Space",
    "实体布局-三维空间": "Entity Layout - Three-Dimensional Space",
    "语法-代词指代": "Grammar - Pronoun Reference",
    "语法-统一性": "Grammar - Consistency",
    "语法-否定": "Grammar - Negation",
    "逻辑推理": "Logical Reasoning",
    "文本生成": "Text Generation",
}
CHINESE = {name: ENGLISH[english] for name, english in _CHINESE_NAMES.items()}
"""In English, which the judges read as well: the prompt and what is looked for stay in Chinese."""


def dimension(point: str) -> str:
    """The primary dimension of a test point: the part before the first hyphen, with a blank at its end,
    as the published figures have it."""
    return point.split("-")[0]


def dimensions(points: dict[str, str]) -> tuple[str, ...]:
    """The ten primary dimensions, in the order of the table of points."""
    return tuple(dict.fromkeys(dimension(point) for point in points))
