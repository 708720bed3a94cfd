"""A caller's prompt to a tokenized, checked `Request`. Pure CPU; called in worker threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..constraints.compiler import ConstraintCompiler
from ..constraints.constraint import ConstraintFactory
from ..errors import ContextLengthError, InvalidRequestError
from ..messages import ChatPrompt, Prompt, TextPrompt, TokensPrompt
from ..reply_rules import ReplyRules
from ..request import Request
from ..sampling_params import SamplingParams
from ..text.chat_template import render_chat
from ..text.tokenizer import Tokenizer
from .reply_dialect import ReplyDialect

# Tokens of a prompt in which a marker that it ends with has room.
_ENDING = 32


class PromptBuilder:
    """Renders, tokenizes and checks prompts for one model.

    Args:
        max_model_len: Most tokens of prompt and answer together.
        vocab_size: Ids the model has rows for, if that is not the tokenizer's size.
        dialect: What the model's answers look like.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_model_len: int,
        vocab_size: int | None = None,
        dialect: ReplyDialect | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._vocab_size = tokenizer.vocab_size if vocab_size is None else vocab_size
        self._dialect = dialect = dialect or ReplyDialect()
        self._constraints = ConstraintCompiler(
            tokenizer,
            self._vocab_size,
            thinking=dialect.thinking,
            calls=dialect.calls,
            content_begin=dialect.content_begin,
        )
        self._shown_ids = dialect.shown_ids(tokenizer)

    def build(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        num_sequences: int = 1,
        cache_salt: str = "",
        arrival_at: float = 0.0,
        rules: ReplyRules | None = None,
    ) -> Request:
        """Make the request that runs.

        Raises:
            ContextLengthError: Prompt and answer do not fit, or no room is left for an answer.
            InvalidRequestError: The prompt is empty or cannot be rendered, an id of it or of the
                parameters lies outside the vocabulary, or a rule cannot be followed.
        """
        self.check_token_ids(params.logit_bias, param="logit_bias")
        self.check_token_ids(params.stop_token_ids, param="stop_token_ids")
        token_ids = self.tokenize(prompt)
        ending = token_ids[-_ENDING:]
        text = "" if rules is None else self._tokenizer.decode(ending, skip_special_tokens=False)
        parses = isinstance(prompt, ChatPrompt) and rules is not None
        self._check_length(len(token_ids), params.max_tokens, param=_param(prompt))
        return Request(
            request_id=request_id,
            prompt_token_ids=tuple(token_ids),
            params=params,
            num_sequences=num_sequences,
            make_parser=self._dialect.parser_for(prompt, text, rules),
            shown_ids=self._shown_ids if parses else frozenset(),
            constraint=self._constrain(prompt, text, rules),
            cache_salt=cache_salt,
            arrival_at=arrival_at,
        )

    def tokenize(self, prompt: Prompt) -> Sequence[int]:
        """The token ids that `build` would run, whatever their number.

        Raises:
            InvalidRequestError: As for `build`.
        """
        param = _param(prompt)
        token_ids: Sequence[int]
        match prompt:
            case ChatPrompt():
                text = render_chat(self._tokenizer, prompt)
                token_ids = self._encode(text, add_special_tokens=False, param=param)
            case TextPrompt(text, add_special_tokens):
                token_ids = self._encode(text, add_special_tokens=add_special_tokens, param=param)
            case TokensPrompt(token_ids):
                self.check_token_ids(token_ids, param=param)
        if not token_ids:
            raise InvalidRequestError("The prompt holds no tokens.", param=param)
        return token_ids

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included.

        Raises:
            InvalidRequestError: An id lies outside the vocabulary.
        """
        self.check_token_ids(token_ids, param="tokens")
        return self._tokenizer.decode(token_ids, skip_special_tokens=False)

    def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Each token decoded alone.

        Raises:
            InvalidRequestError: An id lies outside the vocabulary.
        """
        self.check_token_ids(token_ids, param="tokens")
        return [self._tokenizer.token_text(token_id) for token_id in token_ids]

    def check_token_ids(self, token_ids: Iterable[int], *, param: str) -> None:
        """See that the model knows all ids.

        Raises:
            InvalidRequestError: It does not; names the first such id.
        """
        for token_id in token_ids:
            if not 0 <= token_id < self._vocab_size:
                raise InvalidRequestError(
                    f"{param} holds the token id {token_id}, but the model's vocabulary ends at "
                    f"{self._vocab_size - 1}.",
                    param=param,
                )

    def _constrain(
        self, prompt: Prompt, ending: str, rules: ReplyRules | None
    ) -> ConstraintFactory | None:
        if rules is None:
            return None
        if isinstance(prompt, ChatPrompt) and prompt.reasoning_effort == "none":
            # Whether or not the template could tell the model so.
            rules = replace(rules, thinking_budget=0)
        if not isinstance(prompt, ChatPrompt):
            return self._constraints.compile(rules)  # nobody would read reasoning out of it
        markers = self._dialect.thinking
        if markers is not None and self._dialect.starts_in_reasoning(prompt, ending):
            ending = markers.begin  # wherever it stands
        return self._constraints.compile(rules, prompt.tools, prompt=ending)

    def _encode(self, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            # JSON can spell half of a surrogate pair, which is no character and has no bytes.
            raise InvalidRequestError(
                f"{param} is not valid Unicode: there is half of a surrogate pair.", param=param
            ) from error
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _check_length(self, num_prompt_tokens: int, max_tokens: int | None, *, param: str) -> None:
        # Without max_tokens the answer takes what is left, and that must be something.
        num_wanted = 1 if max_tokens is None else max_tokens
        if num_prompt_tokens + num_wanted > self._max_model_len:
            raise ContextLengthError(
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=max_tokens,
                limit=self._max_model_len,
                param=param,
            )


def _param(prompt: Prompt) -> str:
    """The field on the wire that a prompt came from."""
    return "messages" if isinstance(prompt, ChatPrompt) else "prompt"
