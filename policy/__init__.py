"""The base of all other packages; each process of the project imports it first."""

import gc

# torch, transformers and DeepSpeed make a million objects that stay for good. At Python's own threshold
# of 700 its collector looks through them again and again: a tenth of a process's start.
gc.set_threshold(50_000, 20, 20)
