"""Whatever was said comes back from a session's file, and a damaged file is told in one line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pippin.cli.chat.attachments import KINDS, Attachment
from pippin.cli.chat.session import Session, Turn, read_session, write_session
from pippin.core.errors import PippinError

# All that UTF-8 can hold, and often what TOML has a meaning for.
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("\"\\\n\r\t'# =[]\x00\x7f\u2028")
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.floats(0, 2),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "thinking": st.booleans(),
        "stop": st.lists(TEXT.filter(bool), max_size=3),
        "reasoning_effort": st.sampled_from(["none", "high"]),
    },
)
ATTACHMENTS = st.lists(st.builds(Attachment, st.sampled_from(KINDS), TEXT, TEXT), max_size=2)
TURNS = st.builds(Turn, st.sampled_from(["user", "assistant"]), TEXT, TEXT, ATTACHMENTS.map(tuple))
SESSIONS = st.builds(
    Session,
    model=TEXT,
    system=TEXT,
    settings=SETTINGS,
    turns=st.lists(TURNS, max_size=3).map(tuple),
)


@given(SESSIONS)
def test_a_session_comes_back_from_its_file(session: Session) -> None:
    written = write_session(session).encode()
    assert read_session(written.decode()) == session


def test_people_can_read_the_file() -> None:
    session = Session(
        system="Be brief.",
        settings={"temperature": 0.5},
        turns=(Turn("user", 'Say "hi"\nin two lines'), Turn("assistant", "hi\nhi")),
    )
    assert (
        write_session(session)
        == '''\
# A conversation of pippin chat.
system = "Be brief."

[settings]
temperature = 0.5

[[turns]]
role = "user"
text = """
Say "hi"
in two lines"""

[[turns]]
role = "assistant"
text = """
hi
hi"""
'''
    )


def test_people_can_write_one() -> None:
    assert read_session('[[turns]]\nrole = "user"\ntext = "hi"\n') == Session(
        turns=(Turn("user", "hi"),)
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[[turns]", "not valid TOML"),
        ('sytem = ""', "'sytem' is not known"),
        ("system = 1", "'system' must be a text"),
        ("turns = 1", "'turns' must be a list"),
        ("turns = [1]", "turn 1 is no table"),
        ('[[turns]]\nrole = "system"', "turn 1: the role is 'system'"),
        ('[[turns]]\nrole = "user"\ntext = 1', "turn 1: 'text' must be a text"),
        ('[[turns]]\nrole = "user"\nattachments = [{kind = "x"}]', "the kind is not one of"),
        ("[settings]\ntemperature = 3", "temperature must be at least"),
        ("[settings]\nheat = 3", "no setting 'heat'"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(content: str, said: str) -> None:
    with pytest.raises(PippinError, match=said) as caught:
        read_session(content)
    assert "\n" not in str(caught.value)
