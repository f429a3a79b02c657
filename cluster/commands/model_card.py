"""The card of a trained model, README.md: the model, its training, and what training changed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import ModelCardData, metadata_load

from actors.config import SamplingConfig
from cluster.config import RunConfig, load_config, read_tree
from cluster.sft_config import SftConfig, load_sft_config
from cluster.watch.curves import read_metrics
from cluster.watch.evaluation import Evaluation, load_evaluation, saved_evaluations
from cluster.watch.plots import before_after, reward_curve
from cluster.watch.report import changes, share_prompts
from policy.errors import UserError
from policy.hub import Layout, folder_here, is_hub_id
from policy.paths import write_whole
from policy.prompts import load_templates

Tell = Callable[[str], None]
_TAGS = ["bicot", "janus", "text-to-image", "chain-of-thought"]
_HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Base:
    """The model that training began with, and its license as a card's front matter has it."""

    name: str
    license: dict[str, str] = field(default_factory=dict)

    @property
    def hub_id(self) -> str | None:
        return self.name if is_hub_id(self.name) else None


def write_card(run: Path, folder: Path, step: int, layout: Layout, name: str, tell: Tell) -> None:
    """Write README.md and its pictures into a model's folder. `name`: the model's name, or its
    repository. Reports what the run's records lack, which the card leaves out."""
    path = run / "config.yaml"
    _, tree = read_tree(path)
    config = load_sft_config(path) if "sft" in tree else load_config(path)
    base = find_base(config.policy.path)
    if not base.license:
        tell(f"README.md: the files of {base.name} tell no license: put it into the card by hand")
    first, last = _evaluations(run, step, tell)
    page = _template().render(
        front_matter=_front_matter(base, config, layout).to_yaml(),
        name=name,
        run=run.resolve().name,
        base=base,
        step=step,
        layout=layout,
        settings=_settings(config),
        first=first,
        last=last,
        changes=changes(first, last) if first and last else [],
        numbers=last.metrics() if last else {},
        pictures=_pictures(run, folder, step, first, last, tell),
        **_usage(config, tell),
    )
    write_whole(folder / "README.md", page)


def find_base(path: str) -> Base:
    """The first model, followed through runs that began with another run's checkpoint; and its license,
    if its files are here and state it."""
    seen: set[str] = set()
    while (run := Path(path).parent.parent / "config.yaml").is_file() and path not in seen:
        if Path(path).parent.name != "checkpoints":
            break
        seen.add(path)
        path = read_tree(run)[1]["policy"]["path"]
    return Base(path, _license(path))


def _license(path: str) -> dict[str, str]:
    try:
        folder = folder_here(path)
        found = metadata_load(folder / "README.md") if folder else None
    except (UserError, OSError, ValueError, yaml.YAMLError):  # no folder, no README, no front matter
        return {}
    keys = ("license", "license_name", "license_link")
    license_fields = {key: str(found[key]) for key in keys if found and found.get(key)}
    link = license_fields.get("license_link")
    if link and "://" not in link:  # a file of that folder
        del license_fields["license_link"]
        if is_hub_id(path):
            license_fields["license_link"] = f"{_HUB}/{path}/blob/main/{link}"
    return license_fields if "license" in license_fields else {}


def _front_matter(base: Base, config: RunConfig | SftConfig, layout: Layout) -> ModelCardData:
    more: dict[str, Any] = dict(base.license)
    if layout == "transformers":
        more["library_name"] = "transformers"
    method = ["supervised-fine-tuning"] if isinstance(config, SftConfig) else ["reinforcement-learning"]
    return ModelCardData(
        base_model=base.hub_id,
        pipeline_tag="text-to-image",
        tags=_TAGS + method,
        ignore_metadata_errors=False,
        **more,
    )


def _settings(config: RunConfig | SftConfig) -> dict[str, str]:
    """The main settings; the run's config.yaml has all."""
    learner, policy = config.learner, config.policy
    shared = {
        "learning rate": f"{learner.lr:g}, {learner.schedule}",
        "trained": "LoRA adapters, merged" if learner.lora else "all but the frozen modules",
        "frozen": ", ".join(learner.freeze),
        "type of the weights": policy.dtype,
        "seed": str(config.seed),
    }
    if isinstance(config, SftConfig):
        sft = config.sft
        return {"examples": sft.data, "examples a step": str(sft.batch_size)} | shared
    train, sampling, experts = config.train, config.actors.sampling, config.rewards.experts
    return {
        "prompts": train.prompts,
        "prompts a step": f"{train.groups_per_step}, with {train.group_size} samples each",
        "loss": f"{learner.loss}, KL coefficient {learner.kl_coef:g}",
        "rewards": ", ".join(f"{n} ({e.use}, weight {e.weight:g})" for n, e in experts.items()),
        "sampling": f"guidance {sampling.guidance:g}, temperature {sampling.temperature:g},"
        f" at most {sampling.max_cot_tokens} tokens of CoT",
    } | shared


def _usage(config: RunConfig | SftConfig, tell: Tell) -> dict[str, Any]:
    """Values for the example: both texts that the model was trained with, and its sampling."""
    sampling = config.actors.sampling if isinstance(config, RunConfig) else SamplingConfig()
    sampled = f"do_sample=True, top_k=0, temperature={sampling.temperature}"
    wanted: dict[str, Any] = {
        "thinks": None,
        "sampled": sampled if sampling.temperature > 0 else "do_sample=False",
        "guidance": sampling.guidance,
        "cot_tokens": sampling.max_cot_tokens,
    }
    try:
        templates = load_templates(config.policy.templates)
    except UserError as error:
        tell(f"README.md: without the model's wording: {error}")
    else:
        wanted["thinks"] = templates.cot_conversation("{prompt}")
        wanted["draws"] = templates.image_conversation("{prompt}", "{cot}")
        wanted["raw_cot"] = "{raw_cot}" in templates.image
    return wanted


def _evaluations(run: Path, step: int, tell: Tell) -> tuple[Evaluation | None, Evaluation | None]:
    """The last evaluation up to the step, and the first that shares prompts with it."""
    found = [e for e in _readable(saved_evaluations(run), tell) if e.step <= step]
    last = found[-1] if found else None
    earlier = (e for e in found[:-1] if last and share_prompts(e, last))
    return next(earlier, None), last


def _readable(folders: Iterable[Path], tell: Tell) -> Iterable[Evaluation]:
    for folder in folders:
        try:
            yield load_evaluation(folder)
        except UserError as error:
            tell(f"README.md: left out: {error}")


def _pictures(
    run: Path,
    folder: Path,
    step: int,
    first: Evaluation | None,
    last: Evaluation | None,
    tell: Tell,
) -> list[str]:
    """Draw the pictures that can be drawn, and return their names."""
    drawn = []
    if first and last:
        before_after(first, last).save(folder / "before_after.png")
        drawn.append("before_after.png")
    try:
        lines = read_metrics(run / "metrics.jsonl").lines
        reward_curve([line for line in lines if line["step"] <= step], folder / "reward_curve.png")
        drawn.append("reward_curve.png")
    except UserError as error:
        tell(f"README.md: no reward curve: {error}")
    return drawn


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda text: " ".join(str(text).split()).replace("|", "\\|")
    environment.filters["python"] = repr
    return environment.get_template("model_card.md.j2")
