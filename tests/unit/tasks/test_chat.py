"""Chat templates of strangers: what they write around the turns, and limits for those that do not end."""

import time

import pytest

from llmrec.errors import UserError
from llmrec.tasks import render as chat

EACH = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}\n{% endfor %}"
PLAIN = EACH + "{% if add_generation_prompt %}<assistant>{% endif %}"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_the_texts_around_the_turns(shop):
    shop.tokenizer.chat_template = PLAIN
    assert chat.chat_format(shop.tokenizer, 1) == ["<user>", "\n<assistant>"]
    assert chat.chat_format(shop.tokenizer, 3) == ["<user>", "\n<assistant>", "\n<user>", "\n<assistant>"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOPS, "takes more than"),
        ("{% for m in messages %}" + LOOPS + "{% endfor %}", "takes more than"),
        ("{{ 'a' * 3000000000 }}", "takes more than"),
        ("{% set n = namespace(x='ab') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}", "takes more"),
        ("{{ 'a' * 5000000 }}", "takes more than"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "writes a turn of the conversation twice"),
        ("nothing of it", "leaves out or moves a turn"),
        ("{{ messages[7].content.x.y }}", "fails"),
        ("{% for %}", "fails"),
        ("{{ messages.__class__.__mro__ }}{{ messages[0].content }}", "fails"),
        ("{{ raise_exception('no') }}", "fails"),
    ],
)
def test_templates_that_are_refused(shop, template, said, monkeypatch):
    monkeypatch.setattr(chat, "SECONDS", 2)
    shop.tokenizer.chat_template = template
    started = time.monotonic()
    with pytest.raises(UserError, match=said) as caught:
        chat.chat_format(shop.tokenizer, 1)
    assert time.monotonic() - started < 60, "the limit is 2 seconds"
    assert "\n" not in str(caught.value)


def test_a_request_is_never_part_of_the_program(shop):
    """Text that the template would act on stands in the prompt as it is."""
    shop.tokenizer.chat_template = EACH + "{% if 'x' in messages[0].content %}{{ 'y' * 10**9 }}{% endif %}"
    renderer = type(shop.renderer)(shop.tokenizer, shop.vocabulary, shop.codes, shop.renderer.templates, 4)
    assert renderer.prompt("search", 0, query="xx").endswith("\n")
