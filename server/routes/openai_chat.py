"""``POST /v1/chat/completions``."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from ..adapters.field_names import named_as
from ..adapters.openai_chat import field_names, to_params, to_prompt, to_rules
from ..adapters.openai_chat_reply import ChatChunkWriter, ChatReplyCollector
from ..adapters.reply import UsageCounter
from ..schemas.openai_chat import ChatCompletionRequest
from ..schemas.wire_model import parse_body
from ..service import service_of
from ..streaming import GenerationStream, answer_at_once


async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    wire = parse_body(ChatCompletionRequest, await request.body())
    service.check_model(wire.model)
    prompt = to_prompt(wire)
    params = to_params(wire, service.engine.model_card)
    num_choices = wire.n or 1
    head = service.make_reply_head("chatcmpl")
    with named_as(field_names(wire)):
        generation = await service.engine.submit(
            prompt,
            params,
            request_id=head.reply_id,
            num_sequences=num_choices,
            cache_salt=wire.cache_salt or "",
            rules=to_rules(wire),
        )
    usage = UsageCounter(len(generation.prompt_token_ids))
    if wire.stream:
        include_usage = bool(wire.stream_options and wire.stream_options.include_usage)
        writer = ChatChunkWriter(
            head,
            usage,
            generation,
            num_choices=num_choices,
            include_usage=include_usage,
            with_logprobs=bool(wire.logprobs),
        )
        return GenerationStream(request, [generation], writer, service, reply_id=head.reply_id)
    collector = ChatReplyCollector(
        head, usage, generation, num_choices=num_choices, with_logprobs=bool(wire.logprobs)
    )
    return await answer_at_once(request, [generation], collector, service, reply_id=head.reply_id)
