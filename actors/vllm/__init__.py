"""vLLM runs both phases of Janus: the sampler for GPUs. docs/vllm.md explains how it works.

Reading order: guided_sampling.py (how a pair of rows gets one token), scheduler.py (which rows run
together), model.py (Janus as one language model), worker.py (in each of vLLM's workers), launch.py
(vLLM's configuration), engine.py (all of it together), sampler.py.

Only config.py may be imported where vLLM is not installed.
"""

import os

# Read by vLLM when it is first imported.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine lives in the actor's own process
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# On CPUs vLLM pins its threads to cores, which starves neighbours on a shared machine.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
