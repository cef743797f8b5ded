"""Chat templates: render one in a sandbox, and derive from it the fixed text around every turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

CHATML_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Stand-ins for the texts of a conversation: letters alone, so no template trims or reads them.
_USER = ("zqUserOneqz", "zqUserTwoqz", "zqUserThreeqz")
_ANSWER = ("zqAnswerOneqz", "zqAnswerTwoqz")


class TemplateError(ValueError):
    """The template cannot be rendered, or not be cut into turns; the message says why."""


@dataclass(frozen=True)
class ChatFormat:
    """The fixed text of a conversation: every turn is `opening + text + header`, then the answer.

    Args:
        first: opening of the first turn (begin-of-text mark, default system prompt, user header).
        header: from the user's text to the place where the answer begins.
        closing: what ends an answer; it begins with the end marker.
        next: opening of every later turn: `closing` and the user header.
        notes: where the template treats earlier turns differently from the last one.
    """

    first: str
    header: str
    closing: str
    next: str
    notes: tuple[str, ...] = ()


CHATML = ChatFormat(
    first="<|im_start|>user\n",
    header="<|im_end|>\n<|im_start|>assistant\n",
    closing="<|im_end|>\n",
    next="<|im_end|>\n<|im_start|>user\n",
)


def compile_template(template: str) -> Any:
    """A Jinja2 template in the environment that checkpoints expect; sandboxed, nothing can be changed.

    Raises:
        TemplateError: a syntax error, with its line.
    """
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationBlock(Extension):
        """`{% generation %}` marks answers for training; here its body is rendered as it stands."""

        tags = {"generation"}  # noqa: RUF012 (Jinja2's own interface)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationBlock, "jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"syntax error in line {error.lineno}: {error.message}") from None


def render(compiled: Any, texts: Sequence[str], marks: Mapping[str, str], ask: bool = True) -> str:
    """The conversation whose turns are `texts` (user, answer, user, ...).

    Args:
        compiled: what `compile_template` gave.
        marks: bos_token, eos_token and the like, by name.
        ask: end with the header of the next answer.

    Raises:
        TemplateError: the template refused or failed; the message is its own.
    """
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    try:
        text: str = compiled.render(
            messages=messages,
            add_generation_prompt=ask,
            tools=None,
            documents=None,
            enable_thinking=False,
            **marks,
        )
    except Exception as error:  # a template is a program of its own: anything can come out of it
        raise TemplateError(f"rendering failed: {error or type(error).__name__}") from None
    return text


def derive_format(template: str, marks: Mapping[str, str]) -> ChatFormat:
    """The fixed text around the turns of a template, by rendering conversations and cutting them.

    The thinking mode of hybrid models is switched off (`enable_thinking` is false); an empty
    thinking block that the template puts before an answer stays part of `header`.

    Raises:
        TemplateError: the template cannot be rendered, drops or reorders the texts, or wraps a
            turn differently from turn to turn.
    """
    compiled = compile_template(template)
    one = render(compiled, _USER[:1], marks)
    first, header = _around(one, _USER[0])
    talk = (_USER[0], _ANSWER[0], _USER[1], _ANSWER[1], _USER[2])
    three = render(compiled, talk, marks)
    # `between[i]` is the text from one stand-in to the next; the first and the last are the ends.
    between: list[str] = []
    at = 0
    for stand_in in talk:
        found = three.find(stand_in, at)
        if found < 0:
            raise TemplateError(
                f"a conversation of three turns loses the text of turn {len(between)}"
            )
        between.append(three[at:found])
        at = found + len(stand_in)
    end = three[at:]
    if between[0] != first:
        raise TemplateError("the beginning of the conversation changes when turns are added")
    if between[2] != between[4]:
        raise TemplateError("the text between an answer and the next user turn changes")
    if not between[2]:
        raise TemplateError("nothing marks where an answer ends")
    if end != header:
        raise TemplateError("the text before an answer changes from turn to turn")
    notes = []
    if between[1].rstrip() != header.rstrip():
        shown = header[len(_common(header, between[1])) :].strip()
        notes.append(
            "The chat template writes earlier answers without "
            f"{shown!r}; the conversation keeps it, so that nothing computed has to change."
            if shown
            else "The chat template writes earlier answers differently from the one it asks for; "
            "the conversation keeps what was sent."
        )
    try:
        closed = render(compiled, talk[:4], marks, ask=False)
        after = closed[closed.rindex(_ANSWER[1]) + len(_ANSWER[1]) :]
        closing = _common(after, between[2])
    except (TemplateError, ValueError):
        closing = ""
    return ChatFormat(first, header, closing or between[2], between[2], tuple(notes))


def _common(a: str, b: str) -> str:
    """The beginning that two texts share."""
    same = 0
    while same < min(len(a), len(b)) and a[same] == b[same]:
        same += 1
    return a[:same]


def _around(rendered: str, stand_in: str) -> tuple[str, str]:
    if rendered.count(stand_in) != 1:
        raise TemplateError(
            f"the user's text stands {rendered.count(stand_in)} times in a conversation of one turn"
        )
    before, _, after = rendered.partition(stand_in)
    return before, after
