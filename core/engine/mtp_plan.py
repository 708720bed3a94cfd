"""A model's own head for guessing beside the model: whether it fits, and what the two share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..backend import mx
from ..cache.kv_layout import KVLayout
from ..cache.kv_store import KVStore
from ..errors import ConfigError
from ..models.loader import LoadedModel
from ..models.mtp_head import MtpHead
from ..runner.forward_batch import PassForm
from ..runner.head import find_embedding
from ..runner.mtp_runner import MtpRunner
from ..runner.sampler import Sampler
from .device_plan import DevicePlan, plan_for_device


class MtpPlan:
    """How an MTP head runs on this device. The model hands out its hidden states from now on.

    Args:
        drafter: See `load_drafter`.
        block_size: Tokens a block holds.

    Raises:
        ConfigError: It cannot guess for this model.
    """

    def __init__(
        self, drafter: Any, target: LoadedModel, plan: DevicePlan, *, block_size: int
    ) -> None:
        name = f"the MTP head cannot guess for {target.model_id}"
        embedding = find_embedding(target.model, target.vocab_size)
        if plan.paging_problem is not None:
            raise ConfigError(f"{name}: the model is not paged, {plan.paging_problem}")
        if not plan.layout.groups or plan.layout.groups[0].window is not None:
            raise ConfigError(f"{name}: the model keeps all of the past in no layer")
        if plan.model.head is None or embedding is None:
            raise ConfigError(f"{name}: which of its layers is the first or the last is not known")
        head = MtpHead(drafter, embedding)
        dims = embedding(mx.array([0])).shape[-1]
        if head.hidden_size != dims:
            raise ConfigError(f"{name}: it has {head.hidden_size} dimensions, the model {dims}")
        self._head = plan.model.head
        self._target = target
        self._target_layout = plan.layout
        self._plan = plan_for_device(replace(target, model=head), block_size=block_size)
        self._block_size = block_size
        if self._plan.paging_problem is not None or self._plan.model.form is not PassForm.FLAT:
            reason = self._plan.paging_problem or "tokens need passes of their own"
            raise ConfigError(f"{name}: its layers are not paged, {reason}")
        plan.model.keep_hidden()

    @property
    def shared_layout(self) -> KVLayout:
        """The model's layer groups, the first with the head's layers."""
        return KVLayout([*self._target_layout.layers, *self._plan.layout.layers])

    def make_runner(self, num_blocks: int, eos_token_ids: Sequence[int]) -> MtpRunner:
        """Make the runner.

        Args:
            num_blocks: Of the model's full attention.
        """
        plan = self._plan
        store = KVStore(
            plan.layout,
            [num_blocks],
            block_size=self._block_size,
            dtype=plan.dtype,
            write_in_place=plan.write_in_place,
        )
        return MtpRunner(
            plan.model,
            self._head,
            Sampler(eos_token_ids),
            store,
            max_tokens=self._target.max_model_len or num_blocks * self._block_size,
            row_bucket=plan.row_bucket,
        )
