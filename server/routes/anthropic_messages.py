"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

from dataclasses import replace

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pippin.core.engine.client import EngineClient, Generation
from pippin.core.errors import ContextLengthError
from pippin.core.messages import Prompt
from pippin.core.parsing.reply_reader import ReplyReader
from pippin.core.reply_rules import ReplyRules
from pippin.core.sampling_params import SamplingParams

from ..adapters.anthropic_messages import field_names, to_params, to_prompt, to_rules
from ..adapters.anthropic_reply import (
    PING,
    MessageCollector,
    MessageEvents,
    MessageWriter,
    frame_event,
)
from ..adapters.field_names import named_as
from ..schemas.anthropic_messages import CountTokensRequest, MessagesRequest
from ..schemas.wire_model import parse_body
from ..service import service_of
from ..streaming import GenerationStream, StreamStyle, answer_at_once


async def create_message(request: Request) -> Response:
    """Answer a conversation."""
    service = service_of(request)
    wire = parse_body(MessagesRequest, await request.body())
    service.check_model(wire.model)
    prompt, rules = to_prompt(wire), to_rules(wire)
    head = service.make_reply_head("msg", separator="_")
    with named_as(field_names(wire)):
        params = to_params(wire, service.engine.model_card)
        generation = await _submit(service.engine, prompt, params, rules, request_id=head.reply_id)
    events = MessageEvents(
        ReplyReader(generation.make_parser()),
        reply_id=head.reply_id,
        model=head.model,
        num_prompt_tokens=len(generation.prompt_token_ids),
        max_tokens=wire.max_tokens,
        omit_thinking=wire.thinking is not None and wire.thinking.display == "omitted",
    )
    if wire.stream:
        return GenerationStream(
            request,
            [generation],
            MessageWriter(events),
            service,
            reply_id=head.reply_id,
            style=_stream_style(request.state.request_id),
        )
    return await answer_at_once(
        request, [generation], MessageCollector(events), service, reply_id=head.reply_id
    )


async def count_tokens(request: Request) -> Response:
    """How long the prompt is that the same request would run."""
    service = service_of(request)
    wire = parse_body(CountTokensRequest, await request.body())
    service.check_model(wire.model)
    token_ids = await service.engine.tokenize(to_prompt(wire))
    return JSONResponse({"input_tokens": len(token_ids)})


def _stream_style(request_id: str) -> StreamStyle:
    return StreamStyle(
        keepalive=frame_event(PING),
        encode_error=lambda error: frame_event(error.anthropic_body(request_id)),
    )


async def _submit(
    engine: EngineClient,
    prompt: Prompt,
    params: SamplingParams,
    rules: ReplyRules,
    *,
    request_id: str,
) -> Generation:
    try:
        return await engine.submit(prompt, params, request_id=request_id, rules=rules)
    except ContextLengthError as error:
        if error.num_prompt_tokens >= error.limit:
            raise
    # Agents ask for more than a small model's context holds, every time. The answer then ends as
    # Anthropic's do: with the stop reason "model_context_window_exceeded".
    rest = replace(params, max_tokens=None)
    return await engine.submit(prompt, rest, request_id=request_id, rules=rules)
