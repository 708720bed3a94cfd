"""A draft model beside the model that it guesses for: whether it fits, and what the two share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..cache.kv_layout import KVLayout, LayerKind
from ..cache.kv_store import KVStore
from ..errors import ConfigError
from ..models.loader import LoadedModel
from ..runner.draft_runner import CATCH_UP_TOKENS, DraftRunner
from ..runner.sampler import Sampler
from .device_plan import DevicePlan, plan_for_device
from .step_costs import StepCosts
from .warm_up import WarmUp, learn_costs


class DraftPlan:
    """How a draft model runs on this device.

    Args:
        block_size: Tokens a block holds.

    Raises:
        ConfigError: It cannot guess for this model.
    """

    def __init__(
        self, draft: LoadedModel, target: LoadedModel, plan: DevicePlan, *, block_size: int
    ) -> None:
        names = f"draft-model {draft.model_id} cannot guess for {target.model_id}"
        if draft.tokenizer.get_vocab() != target.tokenizer.get_vocab():
            raise ConfigError(f"{names}: their tokens differ")
        if plan.paging_problem is not None:
            raise ConfigError(f"{names}: the model is not paged, {plan.paging_problem}")
        if not plan.layout.groups or plan.layout.groups[0].window is not None:
            raise ConfigError(f"{names}: the model keeps all of the past in no layer")
        self._draft = draft
        self._target = target
        self._target_layout = plan.layout
        self._plan = plan_for_device(draft, block_size=block_size)
        self._block_size = block_size
        if self._plan.paging_problem is not None:
            raise ConfigError(f"{names}: the draft model is not paged, {self._plan.paging_problem}")
        if self._plan.layout.recurrent:
            raise ConfigError(f"{names}: the draft model has recurrent layers")

    @property
    def shared_layout(self) -> KVLayout:
        """The target's layer groups, the first with the draft model's layers.

        Whatever window these have, they keep all tokens: the block tables are those of the
        target's full attention.
        """
        layers = (replace(it, kind=LayerKind.FULL, window=None) for it in self._plan.layout.layers)
        return KVLayout([*self._target_layout.layers, *layers])

    def make_runner(
        self, num_blocks: int, eos_token_ids: Sequence[int], *, max_num_seqs: int
    ) -> DraftRunner:
        """Make the runner and let it warm up.

        Args:
            num_blocks: Of the target's full attention.
        """
        plan = self._plan
        store = KVStore(
            plan.layout,
            [num_blocks] * len(plan.layout.groups),
            block_size=self._block_size,
            dtype=plan.dtype,
            write_in_place=plan.write_in_place,
        )
        if plan.model.is_compiled:
            learn_costs(
                WarmUp(plan.model, store),
                StepCosts(),
                max_num_seqs=max_num_seqs,
                prefill_chunk=CATCH_UP_TOKENS,
                row_bucket=plan.row_bucket,
            )
        return DraftRunner(
            plan.model,
            Sampler(eos_token_ids),
            store,
            vocab_size=self._target.vocab_size,
            draft_vocab_size=self._draft.vocab_size,
            max_tokens=self._draft.max_model_len or num_blocks * self._block_size,
            row_bucket=plan.row_bucket,
        )
