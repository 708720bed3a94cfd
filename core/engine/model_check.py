"""Whether a model works here, and how: loaded, tried with one token, and asked for its dialects."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..backend import device_kind
from ..config import CacheConfig, EngineConfig, SchedulerConfig
from ..errors import PippinError
from ..messages import ChatPrompt, Message, TextPart, ToolSpec
from ..models.loader import LoadedModel, load_model
from ..models.progress import Progress
from ..parsing.detect import detect_reasoning_dialect, detect_tool_dialect
from ..request import Request, RequestOutput
from ..sampling_params import SamplingParams
from ..text.chat_template import render_chat
from ..text.tokenizer import SELF_CHECK_TEXTS, Tokenizer
from .factory import BuiltEngine, build_engine

Verdict: TypeAlias = Literal["ok", "note", "failed", "skipped"]

# What every tokenizer gives back, whatever it does to spaces, case and rare characters.
_PLAIN_TEXT = "the quick brown fox jumps over the lazy dog"
_PARTS = (
    *("loads", "tokenizer", "chat template", "tool calls", "reasoning"),
    *("KV cache", "attention", "one token"),
)
_TOOL = ToolSpec(
    name="get_weather",
    description="Tell the weather.",
    parameters={"type": "object", "properties": {"city": {"type": "string"}}},
)


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one part of a check.

    Attributes:
        verdict: ``note`` for what works otherwise than people may expect.
        detail: One line.
    """

    part: str
    verdict: Verdict
    detail: str


class ModelCheck:
    """Runs all parts in their order; what needs a part that failed is skipped."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    @property
    def has_failed(self) -> bool:
        """Whether any part has."""
        return any(finding.verdict == "failed" for finding in self.findings)

    def run(self, source: str, progress: Progress) -> list[Finding]:
        """Check a model, on the calling thread."""
        loaded: LoadedModel | None = None
        with self._part("loads"):
            started_at = time.monotonic()
            loaded = load_model(source, progress=progress)
            weights = loaded.quantization or loaded.dtype
            self._add(
                "loads",
                "ok",
                f"{loaded.model_type}, {loaded.num_parameters / 1e6:,.0f} M "
                f"parameters, {weights}, in {time.monotonic() - started_at:.1f} s",
            )
        if loaded is None:
            for part in _PARTS[1:]:
                self._add(part, "skipped", "the model is not loaded")
            return self.findings
        tokenizer = Tokenizer(loaded.tokenizer, loaded.eos_token_ids)
        with self._part("tokenizer"):
            self._check_tokenizer(tokenizer)
        with self._part("chat template"):
            self._check_chat_template(tokenizer)
        self._check_dialects(tokenizer, loaded.model_type)
        progress.start("warm-up", "trying the model")
        with self._part("KV cache"):
            config = EngineConfig(
                cache=CacheConfig(disk_folder=None), scheduler=SchedulerConfig(max_num_seqs=1)
            )
            built = build_engine(loaded, config)
            self._check_paging(built)
            with self._part("one token"):
                self._check_token(built)
        progress.finish()
        return self.findings

    def _add(self, part: str, verdict: Verdict, detail: str) -> None:
        self.findings.append(Finding(part, verdict, detail))

    @contextmanager
    def _part(self, part: str) -> Iterator[None]:
        try:
            yield
        except PippinError as error:
            self._add(part, "failed", str(error))
        # Foreign code on foreign files raises anything, and every part is to be told.
        except Exception as error:
            self._add(part, "failed", f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        def gives_back(text: str) -> bool:
            ids = tokenizer.encode(text, add_special_tokens=False)
            return tokenizer.decode(ids, skip_special_tokens=False).strip() == text.strip()

        changed = sum(not gives_back(text) for text in SELF_CHECK_TEXTS)
        vocab = f"{tokenizer.vocab_size:,} tokens, ends with {len(tokenizer.eos_token_ids)} of them"
        if not gives_back(_PLAIN_TEXT):
            self._add("tokenizer", "failed", f"does not give plain text back; {vocab}")
        elif not tokenizer.eos_token_ids:
            self._add("tokenizer", "failed", "names no token that ends an answer")
        elif changed:
            texts = f"{changed} of {len(SELF_CHECK_TEXTS)} texts with rare characters"
            self._add("tokenizer", "note", f"changes {texts}; {vocab}")
        else:
            self._add("tokenizer", "ok", f"gives text back as it was; {vocab}")

    def _check_chat_template(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.has_chat_template:
            self._add("chat template", "note", "has none: for plain completions only")
            return
        question = Message(role="user", content=[TextPart("Hi")])
        turns = (question, Message(role="assistant", content=[TextPart("Ho")]), question)
        rules = Message(role="system", content=[TextPart("Be brief.")])
        render_chat(tokenizer, ChatPrompt(messages=turns))
        refused = []
        for what, prompt in (
            ("system messages", ChatPrompt(messages=(rules, question))),
            ("tools", ChatPrompt(messages=(question,), tools=(_TOOL,))),
        ):
            try:
                render_chat(tokenizer, prompt)
            except PippinError:
                refused.append(what)
        if refused:
            self._add("chat template", "note", f"renders, but refuses {' and '.join(refused)}")
        else:
            self._add("chat template", "ok", "renders turns, system messages and tools")

    def _check_dialects(self, tokenizer: Tokenizer, model_type: str) -> None:
        template = tokenizer.chat_template_text
        tools = detect_tool_dialect(template, model_type)
        reasoning = detect_reasoning_dialect(template, model_type)
        if tools is None:
            detail = "the chat template tells no dialect: tools are spelled out in the prompt"
            self._add("tool calls", "note", detail)
        else:
            self._add("tool calls", "ok", tools)
        self._add("reasoning", "ok", reasoning or "none, as far as the chat template tells")

    def _check_paging(self, built: BuiltEngine) -> None:
        layers = built.layout.describe()
        if built.paging_problem is not None:
            self._add("KV cache", "note", f"one request at a time: {built.paging_problem}")
            self._add("attention", "note", "mlx-lm's own")
            return
        self._add("KV cache", "ok", f"paged: {layers}")
        # A CPU has no kernel to miss.
        is_plain = not built.attention.startswith("kernel") and device_kind() != "cpu"
        self._add("attention", "note" if is_plain else "ok", f"{built.attention} ({device_kind()})")

    def _check_token(self, built: BuiltEngine) -> None:
        ids = built.tokenizer.encode(_PLAIN_TEXT, add_special_tokens=True)
        params = SamplingParams(max_tokens=1, temperature=0.0, num_logprobs=0, ignore_eos=True)
        started_at = time.monotonic()
        # Never closed: that would take this thread's streams from it, and there is no disk cache.
        built.engine.add(Request(request_id="check", prompt_token_ids=tuple(ids), params=params))
        outputs: list[RequestOutput] = []
        while built.engine.has_work:
            outputs += built.engine.step().outputs
        for output in outputs:
            if output.failure is not None:
                raise output.failure
        token_ids = [token_id for output in outputs for token_id in output.token_ids]
        (logprob,) = (entry.chosen.logprob for output in outputs for entry in output.logprobs)
        if not math.isfinite(logprob):
            self._add("one token", "failed", "the model's answers are not numbers")
            return
        took = format(1000 * (time.monotonic() - started_at), ".0f")
        text = built.tokenizer.token_text(token_ids[0])
        self._add("one token", "ok", f"{text!r}, {took} ms after a prompt of {len(ids)} tokens")
