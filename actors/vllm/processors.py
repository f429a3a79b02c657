"""Where vLLM asks for the next tokens. It has two model runners (V1 on CPUs, V2 on GPUs) with an
interface each; both classes only find out who is in which row, and leave the rest to the Drawer."""

import numpy as np
from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor import LogitsProcessor as LogitsProcessorV1
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from actors.vllm.drawing import Drawer, Layout
from actors.vllm.lane import Lane, lane_of


class PairProcessorV1(LogitsProcessorV1):
    def __init__(self, vllm_config, device, is_pin_memory):
        self.drawer = Drawer(vllm_config.model_config.hf_config.text_vocabulary)
        self._device = device
        self._rows: dict[int, tuple[Lane, list[int]]] = {}
        self._layout: Layout | None = None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        self._layout = None
        for row in batch_update.removed:
            self._rows.pop(row, None)
        for row, params, _, output in batch_update.added:
            self._rows[row] = (lane_of(params), output)  # vLLM appends to this very list
        for source, target, direction in batch_update.moved:
            moved, displaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if direction == MoveDirectionality.SWAP and displaced is not None:
                self._rows[source] = displaced

    def apply(self, logits: Tensor) -> Tensor:
        if not self._rows:
            return logits
        rows = [self._rows.get(n, (None, ())) for n in range(len(logits))]
        if self._layout is None:
            self._layout = self.drawer.layout([lane for lane, _ in rows], self._device)
        self.drawer.draw(logits, self._layout, np.array([len(output) for _, output in rows]))
        return logits


class PairProcessorV2(LogitsProcessorV2):
    def __init__(self, vllm_config, req_states):
        self.drawer = Drawer(vllm_config.model_config.hf_config.text_vocabulary)
        self._states = req_states
        self._lanes: dict[int, Lane | None] = {}  # by slot
        self._layout: Layout | None = None  # of the rows in these slots; None: none of them is ours
        self._slots: bytes | None = None

    def add_request(self, req_idx: int, sampling_params) -> bool:
        self._lanes[req_idx] = lane_of(sampling_params)
        self._slots = None
        return self._lanes[req_idx] is not None

    def apply(self, logits: Tensor, ctx) -> Tensor:
        slots = ctx.idx_mapping_np
        if slots.tobytes() != self._slots:
            lanes = [self._lanes.get(slot) for slot in slots.tolist()]
            self._layout = self.drawer.layout(lanes, logits.device) if any(lanes) else None
            self._slots = slots.tobytes()
        if self._layout is not None:
            lengths = ctx.seq_lens_upper_bound_np[: len(slots)]  # exact without speculative decoding
            positions = lengths - self._states.prompt_len.np[slots]
            self.drawer.draw(logits, self._layout, positions)
        return logits
