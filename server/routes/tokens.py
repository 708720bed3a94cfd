"""``POST /tokenize`` and ``POST /detokenize``: what a request would run as, without running it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pippin.core.errors import InvalidRequestError
from pippin.core.messages import Prompt, TextPrompt

from ..adapters.openai_chat import to_prompt
from ..adapters.sampling import check_token_ids
from ..schemas.openai_chat import ChatCompletionRequest
from ..schemas.tokens import DetokenizeRequest, TokenizeRequest
from ..schemas.wire_model import parse_body
from ..service import service_of

_OF_MESSAGES = (
    *("add_generation_prompt", "chat_template_kwargs", "continue_final_message", "tools"),
)


async def tokenize(request: Request) -> Response:
    """Token ids of a text or of a conversation."""
    service = service_of(request)
    wire = parse_body(TokenizeRequest, await request.body())
    if wire.model is not None:
        service.check_model(wire.model)
    token_ids = await service.engine.tokenize(_to_prompt(wire))
    strings = await service.engine.token_strings(token_ids) if wire.return_token_strs else None
    return JSONResponse(
        {
            "count": len(token_ids),
            "max_model_len": service.engine.model_card.max_model_len,
            "tokens": token_ids,
            "token_strs": strings,
        }
    )


async def detokenize(request: Request) -> Response:
    """Text of token ids."""
    service = service_of(request)
    wire = parse_body(DetokenizeRequest, await request.body())
    if wire.model is not None:
        service.check_model(wire.model)
    check_token_ids(wire.tokens, service.engine.model_card, param="tokens")
    return JSONResponse({"prompt": await service.engine.detokenize(wire.tokens)})


def _to_prompt(wire: TokenizeRequest) -> Prompt:
    if (wire.prompt is None) == (wire.messages is None):
        raise InvalidRequestError("Give either 'prompt' or 'messages'.", param="prompt")
    if wire.messages is None:
        for name in _OF_MESSAGES:
            if getattr(wire, name) is not None:
                raise InvalidRequestError(f"'{name}' goes with 'messages' only.", param=name)
        assert wire.prompt is not None
        return TextPrompt(wire.prompt, add_special_tokens=wire.add_special_tokens is not False)
    if wire.add_special_tokens:
        raise InvalidRequestError(
            "'add_special_tokens' goes with 'prompt' only: a chat template brings its own.",
            param="add_special_tokens",
        )
    return to_prompt(
        ChatCompletionRequest(
            model=wire.model or "-",
            messages=wire.messages,
            tools=wire.tools,
            chat_template_kwargs=wire.chat_template_kwargs,
            add_generation_prompt=wire.add_generation_prompt,
            continue_final_message=wire.continue_final_message,
        )
    )
