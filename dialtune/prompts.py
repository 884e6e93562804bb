"""Examples to Prompts: templates as data, and whole turns dropped from the oldest end to fit a token budget."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from dialtune.data.dialogue import render_dialogue
from dialtune.errors import ConfigError
from dialtune.types import Example, Message, Prompt

CountTokens = Callable[[Sequence[Message]], int]


@dataclass(frozen=True, slots=True)
class Template:
    """How an example becomes chat messages.

    `user` holds `{dialogue}` where the rendered turns go; None sends the example's own chat messages as they are.
    `system` goes in front, unless None or the example brings its own.
    """

    name: str
    user: str | None
    system: str | None = None


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        # Chat models that are given no system message often add one that names themselves, and then summarize that.
        Template(
            "summarize",
            "Summarize the dialogue in one or two sentences.\n\n{dialogue}\n\nSummary:",
            system="You summarize dialogues.",
        ),
        Template("summarize-flan", "Summarize the following dialogue.\n\n{dialogue}\n\nSummary:"),
        Template("summarize-t5", "summarize: {dialogue}"),  # the prefix of T5's own pre-training
        Template("plain", "{dialogue}"),  # BART and Pegasus, as published
        Template("chat", None),
        Template("respond", None),  # the context as it was talked; who they are is said by data.turns.system
    )
}


class HasTemplate(Protocol):
    """What a task must say here: the name of its template."""

    @property
    def template(self) -> str:
        """A key of TEMPLATES."""


def find_template(name: str) -> Template:
    """The template called `name`; ConfigError names those that exist."""
    if name not in TEMPLATES:
        raise ConfigError(f"template: got '{name}'; known: {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def template_sha256(name: str) -> str:
    """sha256 of a template's content: two evaluations with different ones are not comparable."""
    content = json.dumps(asdict(find_template(name)), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(content.encode("ascii")).hexdigest()


def build_prompts(
    examples: Iterable[Example],
    task: HasTemplate,
    *,
    max_prompt_tokens: int | None = None,
    count_tokens: CountTokens | None = None,
) -> list[Prompt]:
    """One Prompt per example, in order.

    Args:
        examples: dialogues, documents or chats.
        task: its `template` is used.
        max_prompt_tokens: budget of the whole prompt, in tokens of `count_tokens`; None for no limit.
        count_tokens: tokens of a list of chat messages as the model will see them.
    """
    template = find_template(task.template)
    if max_prompt_tokens is not None and count_tokens is None:
        raise ConfigError("max_prompt_tokens: needs count_tokens, the model's own count, to measure a prompt")
    prompts = []
    sizes = None if count_tokens is None else _Sizes(template, count_tokens)
    for example in examples:
        turns, dropped = example.messages, 0
        if max_prompt_tokens is not None and sizes is not None:
            turns, dropped = _fit(turns, max_prompt_tokens, sizes)
        prompts.append(Prompt(example.id, render_prompt(turns, template), template.name, dropped))
    return prompts


def render_prompt(turns: Sequence[Message], template: Template) -> tuple[Message, ...]:
    """The chat messages of a prompt: optional system message, then one user message or the turns themselves."""
    if template.user is None:
        messages = tuple(turn if turn.speaker is None else Message(turn.role, turn.content) for turn in turns)
    else:
        # replace, not format: braces in a dialogue are text
        messages = (Message("user", template.user.replace("{dialogue}", render_dialogue(turns))),)
    if template.system is None or messages[0].role == "system":
        return messages
    return (Message("system", template.system), *messages)


class _Sizes:
    """What turns cost in one template; a turn is counted once, however many replies have it in their context."""

    def __init__(self, template: Template, count: CountTokens) -> None:
        self.template, self._count = template, count
        self._alone: dict[tuple[str | None, str], int] = {}
        self._frame: int | None = None  # what the template costs around its turns

    def exact(self, turns: tuple[Message, ...]) -> int:
        """Tokens of the whole prompt."""
        return self._count(render_prompt(turns, self.template))

    def first_that_may_fit(self, head: tuple[Message, ...], body: tuple[Message, ...], budget: int) -> int:
        """Where to begin so that the rest of `body` fits, by the sum of its turns; a guess to start counting from."""
        left = budget - sum(map(self._turn, head)) - self._around(body[-1])
        for place in range(len(body) - 1, -1, -1):
            left -= self._turn(body[place])
            if left < 0:
                return min(place + 1, len(body) - 1)
        return 0

    def _turn(self, turn: Message) -> int:
        return self._counted(turn) - self._around(turn)

    def _counted(self, turn: Message) -> int:
        key = (turn.speaker, turn.content)
        if key not in self._alone:
            self._alone[key] = self.exact((Message("user", turn.content, turn.speaker),))
        return self._alone[key]

    def _around(self, turn: Message) -> int:
        if self._frame is None:
            one = Message("user", turn.content, turn.speaker)
            self._frame = 2 * self.exact((one,)) - self.exact((one, one))
        return self._frame


def _fit(turns: tuple[Message, ...], budget: int, sizes: _Sizes) -> tuple[tuple[Message, ...], int]:
    """(turns that fit, how many were dropped or cut).

    The oldest go first: the end of a dialogue holds its outcome, and a reply answers the last turn. A system message
    stays. If the last turn alone is too long, its words are cut from the end and it counts as dropped too.
    """

    def fits(kept: tuple[Message, ...]) -> bool:
        return sizes.exact(kept) <= budget

    is_short = sum(len(turn.content) for turn in turns) <= 3 * budget  # characters: then it usually fits as it is
    if is_short and fits(turns):
        return turns, 0
    keeps_head = sizes.template.user is None and turns[0].role == "system" and len(turns) > 1
    head, body = (turns[:1], turns[1:]) if keeps_head else ((), turns)
    start = sizes.first_that_may_fit(head, body, budget)
    found = fits(head + body[start:])
    if found:
        while start and fits(head + body[start - 1 :]):
            start -= 1
    while not found and start < len(body) - 1:
        start += 1
        found = fits(head + body[start:])
    kept = head + body[start:]
    return (kept, start) if found else (_cut_last(kept, fits), start + 1)


def _cut_last(kept: tuple[Message, ...], fits: Callable[[tuple[Message, ...]], bool]) -> tuple[Message, ...]:
    """`kept` with the longest beginning of its last turn that fits, one word at least."""
    last = kept[-1]
    words = last.content.split(" ")

    def cut(size: int) -> tuple[Message, ...]:
        return (*kept[:-1], Message(last.role, " ".join(words[:size]), last.speaker))

    low, high = 1, max(len(words) - 1, 1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(cut(middle)) else (low, middle - 1)
    return cut(low)
