"""What an image costs the published experts, from their models' shapes: 2 FLOP a parameter and token,
at the checkpoint that each loads by default. Estimates; `expert_s.NAME` in a file of figures is better.
"""

GFLOP = {
    # Vision transformers: parameters x tokens of an image.
    "rewards.experts.clip:CLIPScore": 160,  # ViT-L/14, 224 pixels: 304 M x 257
    "rewards.experts.clip:PickScore": 325,  # ViT-H/14, 224 pixels: 632 M x 257
    "rewards.experts.clip:HPSv2": 325,
    "rewards.experts.grounding:Owlv2": 800,  # ViT-B/16, 960 pixels: 86 M x 3,600, and attention
    # Its paper's comparison tables say 464 for 800 x 1,333 pixels; a square image has fewer.
    "rewards.experts.grounding:GroundingDino": 350,
    # ViT-L/14 at 420 pixels once an image, and three short questions.
    "rewards.experts.vqa:Git": 700,
    "rewards.experts.vqa:BlipVqa": 200,  # ViT-B/16, 480 pixels, and three questions
    # Language models that read an image as tokens: parameters x (image and text tokens).
    "rewards.experts.orm:Orm": 12_000,  # 7 B x 850
    "rewards.experts.hpsv3:HPSv3": 7_000,  # 7.6 B x 450
}


def gflop_an_image(use: str) -> float | None:
    """GFLOP of `package.module:Class` for one image; None: not known."""
    return GFLOP.get(use)
