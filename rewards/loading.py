"""From a name in the configuration to an expert's class, and what can be checked of it before anything
starts."""

import inspect
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from policy.errors import UserError
from rewards.config import ExpertConfig, RewardsConfig
from rewards.doors import token_digest
from rewards.expert import Expert


def split_use(use: str) -> tuple[str, str]:
    """Module and class of "package.module:Class". Raises UserError for anything else."""
    module_name, colon, class_name = use.partition(":")
    if not (colon and class_name.isidentifier() and all(map(str.isidentifier, module_name.split(".")))):
        raise UserError(f"{use!r} does not name an expert: write package.module:Class")
    return module_name, class_name


def load_expert_class(use: str) -> type[Expert]:
    """The class that "package.module:Class" names. Raises UserError with one line on what is wrong."""
    module_name, class_name = split_use(use)
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(f"{use}: there is no module {error.name!r} on the Python path") from error
        raise UserError(f"{use}: {module_name} needs a module that is missing: {error.name}") from error
    except (ImportError, SyntaxError) as error:
        raise UserError(f"{use}: {module_name} cannot be imported: {error}") from error

    found = getattr(module, class_name, None)
    if found is None:
        experts = [name for name, value in vars(module).items() if _is_expert(value)]
        near = get_close_matches(class_name, experts, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{use}: {module_name} has no class {class_name}{hint}")
    if not _is_expert(found):
        raise UserError(f"{use}: {class_name} is not a subclass of rewards.expert.Expert")
    if missing := sorted(found.__abstractmethods__):
        raise UserError(f"{use}: {class_name} does not define {', '.join(missing)}")
    return found


def _is_expert(value: object) -> bool:
    return inspect.isclass(value) and issubclass(value, Expert)


def constructor_options(entry: ExpertConfig) -> dict[str, Any]:
    """The keyword arguments of an expert: its options, and where and in which numbers it runs."""
    placed = {"device": entry.device, "dtype": entry.dtype}
    placed = {name: value for name, value in placed.items() if value is not None}
    if twice := placed.keys() & entry.options.keys():
        raise UserError(f"{min(twice)} is set, and again in options: set it once")
    return {**entry.options, **placed}


def check_experts(config: RewardsConfig) -> None:
    """Load every class and hold its options against its constructor, but build nothing; look for the
    gateway's token.

    For a driver that must refuse a bad config before it starts. An expert with packages of its own can
    only be loaded where these are; of it the name alone is checked. Raises UserError naming the expert.
    """
    if config.gateway is not None:
        token_digest(config.gateway)
    for name, entry in config.experts.items():
        try:
            if entry.has_own_packages:
                split_use(entry.use)
                constructor_options(entry)
            else:
                found = load_expert_class(entry.use)
                inspect.signature(found).bind(**constructor_options(entry))
        except (UserError, TypeError) as error:
            what = f"options: {error}" if isinstance(error, TypeError) else str(error)
            raise UserError(f"rewards.experts.{name}: {what}") from error
