"""Conversations reach the template in the form it wants, and its refusals reach the caller."""

import inspect
import json
from typing import Any

import byte_tokenizer as tokenizers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pippin.core.errors import InvalidRequestError
from pippin.core.messages import ChatPrompt, Message, TextPart, ToolCall, ToolSpec
from pippin.core.text.chat_template import RESERVED_TEMPLATE_KWARGS, render_chat
from pippin.core.text.tokenizer import Tokenizer

PARTS_ONLY = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% for part in m.content %}({{ part.text }}){% endfor %}{% endfor %}"
)
DUMP = "{# tools #}{{ messages | tojson }}"


def say(role: str, *texts: str, **fields: Any) -> Message:
    return Message(role=role, content=tuple(map(TextPart, texts)), **fields)


def render(template: str | None, *messages: Message, **fields: Any) -> str:
    return render_prompt(template, ChatPrompt(messages=messages, **fields))


def render_prompt(template: str | None, prompt: ChatPrompt) -> str:
    tokenizer = Tokenizer(tokenizers.make_byte_tokenizer(chat_template=template))
    return render_chat(tokenizer, prompt)


def dump(*messages: Message, template: str = DUMP) -> Any:
    return json.loads(render(template, *messages))


def test_chat_is_rendered_with_the_generation_prompt() -> None:
    assert render(tokenizers.CHATML, say("system", "s"), say("user", "u")) == (
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    )


def test_generation_prompt_can_be_left_out() -> None:
    text = render(tokenizers.CHATML, say("user", "u"), add_generation_prompt=False)
    assert text == "<|im_start|>user\nu<|im_end|>\n"


@settings(deadline=None)
@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(max_size=15)),
        min_size=1,
        max_size=5,
    ),
    opens=st.booleans(),
    with_bos=st.booleans(),
)
def test_token_ids_are_those_of_the_tokenizers_own_call(
    turns: list[tuple[str, str]], opens: bool, with_bos: bool
) -> None:
    template = ("{{ bos_token }}" if with_bos else "") + tokenizers.CHATML
    hf = tokenizers.make_byte_tokenizer(chat_template=template)
    expected = hf.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        tokenize=True,
        return_dict=False,
        add_generation_prompt=opens,
    )
    tokenizer = Tokenizer(hf)
    messages = [say(role, text) for role, text in turns]
    text = render_chat(tokenizer, ChatPrompt(messages=messages, add_generation_prompt=opens))
    assert tokenizer.encode(text, add_special_tokens=False) == expected


def test_parts_are_joined_for_templates_that_want_strings() -> None:
    assert dump(say("user", "a", "b"))[0]["content"] == "ab"


def test_parts_are_kept_for_templates_that_walk_over_them() -> None:
    assert render(PARTS_ONLY, say("user", "a", "b")) == "[user](a)(b)"


def test_string_is_preferred_where_the_template_takes_both() -> None:
    both = (
        "{% for m in messages %}{% if m.content is string %}S{{ m.content }}"
        "{% else %}L{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}"
    )
    assert render(both, say("user", "a", "b")) == "Sab"


def test_developer_speaks_as_system_where_the_template_knows_no_developer() -> None:
    assert dump(say("developer", "d"))[0]["role"] == "system"
    knows = "{# developer #}" + DUMP
    assert dump(say("developer", "d"), template=knows)[0]["role"] == "developer"


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'developer' %}{{ raise_exception('no') }}{% endif %}" + DUMP,
        "{{ messages | rejectattr('role', 'eq', 'developer') | list | tojson }}",
    ],
)
def test_developer_speaks_as_system_where_the_template_turns_developers_away(
    template: str,
) -> None:
    assert dump(say("developer", "d"), template=template)[0]["role"] == "system"


def test_tool_calls_and_results_have_the_form_that_templates_expect() -> None:
    call = ToolCall(call_id="c1", name="look", arguments={"at": "é"})
    turns = dump(
        say("user", "u"),
        say("assistant", tool_calls=[call], reasoning="hm"),
        say("tool", "seen", tool_call_id="c1"),
    )
    assert turns[1]["content"] == ""
    assert turns[1]["tool_calls"] == [
        {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"at": "é"}}}
    ]
    assert turns[1]["reasoning_content"] == "hm"
    assert turns[2]["tool_call_id"] == "c1"
    assert turns[2]["name"] == "look"


def test_name_that_the_caller_gave_stays() -> None:
    call = ToolCall(call_id="c1", name="look", arguments={})
    turns = dump(
        say("assistant", tool_calls=[call]), say("tool", "x", tool_call_id="c1", name="own")
    )
    assert turns[1]["name"] == "own"


def test_arguments_are_json_text_for_templates_that_join_them() -> None:
    joins = (
        "{% for m in messages %}{% for c in m.tool_calls %}"
        "{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}"
    )
    call = ToolCall(call_id="c1", name="look", arguments={"at": "é"})
    assert render(joins, say("assistant", tool_calls=[call])) == 'look{"at": "é"}'


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ("{{ a if a is string else a | tojson }}", '{"at": "é'),
        ("{{ a | tojson }}", '"{\\"at\\": \\"é"'),
        ("{{ '' + a }}", '{"at": "é'),
        ("{% for k, v in a.items() %}{{ k }}={{ v }}{% endfor %}", 'arguments={"at": "é'),
        ("{% for k in a %}{{ k }}={{ a[k] }}{% endfor %}", 'arguments={"at": "é'),
    ],
)
def test_arguments_that_broke_off_are_shown_as_the_template_can(shown: str, expected: str) -> None:
    template = (
        "{% for m in messages %}{% for c in m.tool_calls %}{% set a = c.function.arguments %}"
        f"{shown}{{% endfor %}}{{% endfor %}}"
    )
    call = ToolCall(call_id="c1", name="look", arguments='{"at": "é')
    assert render("{# tools #}" + template, say("assistant", tool_calls=[call])) == expected


def test_extra_variables_reach_the_template() -> None:
    template = "{{ messages[0].content }}{{ enable_thinking }}"
    assert render(template, say("user", "u"), template_kwargs={"enable_thinking": 1}) == "u1"


@pytest.mark.parametrize("name", sorted(RESERVED_TEMPLATE_KWARGS))
def test_reserved_variable_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        render(tokenizers.CHATML, say("user", "u"), template_kwargs={name: None})
    assert caught.value.param == "chat_template_kwargs"


def test_every_parameter_of_the_renderer_is_reserved() -> None:
    parameters = set(inspect.signature(PreTrainedTokenizerFast.apply_chat_template).parameters)
    # Documents are a variable in their own right: templates for retrieval read them.
    assert parameters - {"kwargs", "documents"} <= RESERVED_TEMPLATE_KWARGS


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('Roles must\n alternate') }}", "Roles must alternate"),
        ("{{ messages[0].content.no.such }}", "no such|has no attribute"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages.append(1) }}", "unsafe|append"),
    ],
)
def test_refusal_of_the_template_is_the_callers_message(template: str, reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason) as caught:
        render(template, say("user", "u"))
    assert caught.value.param == "messages"
    assert "\n" not in str(caught.value)


def test_refusal_is_about_the_usual_form_of_tool_calls() -> None:
    template = "{{ raise_exception(messages[0].tool_calls[0].function.arguments | string) }}"
    call = ToolCall(call_id="c1", name="look", arguments={"a": 1})
    with pytest.raises(InvalidRequestError, match=r"\{'a': 1\}"):
        render(template, say("assistant", tool_calls=[call]))


def test_model_without_a_template_names_the_alternative() -> None:
    with pytest.raises(InvalidRequestError, match="/v1/completions") as caught:
        render(None, say("user", "u"))
    assert caught.value.param == "messages"


def test_conversation_without_messages_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        render(tokenizers.CHATML)


ALTERNATING = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system first') }}{% endif %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
)


def test_rules_in_the_middle_are_told_by_the_user_where_templates_want_them_first() -> None:
    turns = [say("system", "a"), say("user", "b"), say("system", "c"), say("assistant", "d")]

    assert render(ALTERNATING, *turns) == "s:a;u:b\n\nc;a:d;"
    # Where they may stand they stay.
    assert render(ALTERNATING.replace("not loop.first", "false"), *turns) == "s:a;u:b;s:c;a:d;"


def test_rules_in_the_middle_stay_there_where_templates_would_move_them_to_the_head() -> None:
    # As DeepSeek's templates do, so that all that was said before would be new to the cache.
    moving = (
        "{% for m in messages if m.role == 'system' %}{{ m.content }}|{% endfor %}"
        "{% for m in messages if m.role != 'system' %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"
    )
    before = [say("system", "a"), say("system", "b"), say("user", "c"), say("assistant", "d")]

    text = render(moving, *before, say("developer", "e"), say("user", "f"))

    assert text == render(moving, *before) + "u:e;u:f;"


def test_templates_without_system_turns_get_none() -> None:
    strict = ALTERNATING.replace("not loop.first", "true")

    assert render(strict, say("system", "a"), say("user", "b")) == "u:a\n\nb;"


def test_tools_are_spelled_out_for_templates_without_a_place_for_them() -> None:
    call = ToolCall(call_id="c1", name="look", arguments={"at": "é"})
    prompt = ChatPrompt(
        messages=(
            say("user", "u"),
            say("assistant", "so", tool_calls=[call]),
            say("tool", "seen", tool_call_id="c1"),
        ),
        tools=(ToolSpec(name="look", parameters={"type": "object"}),),
    )

    text = render_prompt(ALTERNATING, prompt)

    assert '{"type": "function", "function": {"name": "look", "parameters"' in text
    assert 'a:so\n<tool_call>\n{"name": "look", "arguments": {"at": "é"}}\n</tool_call>;' in text
    assert text.endswith("u:<tool_response>\nseen\n</tool_response>;")


def test_tools_reach_templates_in_their_usual_form() -> None:
    tool = ToolSpec(name="look", description="sees", parameters={"type": "object"})
    prompt = ChatPrompt(messages=(say("user", "u"),), tools=(tool,))

    shown = json.loads(render_prompt("{{ tools | tojson }}", prompt))

    function = {"name": "look", "description": "sees", "parameters": {"type": "object"}}
    assert shown == [{"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("effort", "shown"),
    [
        (None, ",,"),
        ("none", "low,False,False"),
        ("medium", "medium,True,True"),
        ("xhigh", "high,True,True"),
    ],
)
def test_effort_is_told_by_the_names_that_templates_know(effort: str | None, shown: str) -> None:
    template = "{{ reasoning_effort }},{{ enable_thinking }},{{ thinking }}"
    prompt = ChatPrompt(messages=(say("user", "u"),), reasoning_effort=effort)

    assert render_prompt(template, prompt) == shown
    assert render_prompt("{{ messages[0].content }}", prompt) == "u"


def test_the_last_message_can_be_gone_on_with() -> None:
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    prompt = ChatPrompt(
        messages=(say("user", "u"), say("assistant", "I thi")),
        add_generation_prompt=False,
        continue_final_message=True,
    )

    assert render_prompt(template, prompt) == "<user>u</><assistant>I thi"
