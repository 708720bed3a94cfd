"""``POST /v1/completions``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from pippin.core.engine.client import EngineClient, Generation
from pippin.core.messages import TextPrompt, TokensPrompt
from pippin.core.sampling_params import SamplingParams

from ..adapters.openai_completions import to_params, to_prompts
from ..adapters.openai_completions_reply import (
    CompletionChunkWriter,
    CompletionLayout,
    CompletionReplyCollector,
    EchoedPrompt,
)
from ..adapters.reply import UsageCounter
from ..schemas.openai_completions import CompletionRequest
from ..schemas.wire_model import parse_body
from ..service import service_of
from ..streaming import GenerationStream, answer_at_once


async def create_completion(request: Request) -> Response:
    """Continue one or more texts."""
    service = service_of(request)
    wire = parse_body(CompletionRequest, await request.body())
    service.check_model(wire.model)
    prompts = to_prompts(wire, service.engine.model_card)
    params = to_params(wire, service.engine.model_card)
    head = service.make_reply_head("cmpl")
    generations = await _submit_all(service.engine, wire, prompts, params, head.reply_id)
    layout = CompletionLayout(
        num_prompts=len(prompts),
        num_answers=wire.n or 1,
        with_logprobs=wire.logprobs is not None,
        echoes=await _echoes(service.engine, wire, prompts, generations) if wire.echo else (),
        scored=generations if wire.prompt_logprobs is not None else (),
    )
    usage = UsageCounter(sum(len(generation.prompt_token_ids) for generation in generations))
    if wire.stream:
        include_usage = bool(wire.stream_options and wire.stream_options.include_usage)
        writer = CompletionChunkWriter(head, usage, layout, include_usage=include_usage)
        return GenerationStream(request, generations, writer, service, reply_id=head.reply_id)
    collector = CompletionReplyCollector(head, usage, layout)
    return await answer_at_once(request, generations, collector, service, reply_id=head.reply_id)


async def _submit_all(
    engine: EngineClient,
    wire: CompletionRequest,
    prompts: Sequence[TextPrompt | TokensPrompt],
    params: SamplingParams,
    reply_id: str,
) -> list[Generation]:
    """Submit all prompts, or none: the first error ends those that got through."""
    results = await asyncio.gather(
        *(
            engine.submit(
                prompt,
                params,
                request_id=f"{reply_id}-{index}",
                num_sequences=wire.n or 1,
                cache_salt=wire.cache_salt or "",
            )
            for index, prompt in enumerate(prompts)
        ),
        return_exceptions=True,
    )
    generations = [result for result in results if not isinstance(result, BaseException)]
    for result in results:
        if isinstance(result, BaseException):
            for generation in generations:
                generation.abort()
            raise result
    return generations


async def _echoes(
    engine: EngineClient,
    wire: CompletionRequest,
    prompts: Sequence[TextPrompt | TokensPrompt],
    generations: Sequence[Generation],
) -> list[EchoedPrompt]:
    echoes = []
    for prompt, generation in zip(prompts, generations, strict=True):
        first_token = None
        if wire.logprobs is not None:
            [first_token] = await engine.token_strings(generation.prompt_token_ids[:1])
        if isinstance(prompt, TextPrompt):
            text = prompt.text
        else:
            text = await engine.detokenize(prompt.token_ids)
        echoes.append(EchoedPrompt(text=text, first_token=first_token, generation=generation))
    return echoes
