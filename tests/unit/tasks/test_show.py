"""What `llmrec tasks show` prints is what the collator hands to training."""

import pytest

from llmrec.intentions.intentions import Intentions
from llmrec.tasks.config import TASKS, TasksConfig
from llmrec.tasks.mixture import Collator, Span, build_tasks, marked, show_tasks, spans_of
from llmrec.tasks.render import Example


def test_spans_are_the_labels(shop):
    collator = Collator(shop.renderer, 160)
    tokens, spans = spans_of(Example("Say soap: ", "<a_1><b_2>", ends=False), collator)
    assert spans == [Span("Say soap: ", False), Span("<a_1><b_2>", True)]
    assert tokens == len(shop.tokenizer("Say soap: <a_1><b_2>")["input_ids"])
    _, spans = spans_of(Example("Bought: <a_0><b_0><a_3><b_4>", "<a_1><b_2>", False, every_item=True), collator)
    assert [span.trained for span in spans] == [False, True]
    assert spans[0].text.endswith("<a_0><b_0>"), "the first item has nothing before it to be told by"


def test_every_task_is_shown(shop):
    users = [f"u{row}" for row in range(len(shop.sequences))]
    config = TasksConfig(mixture=dict.fromkeys(TASKS, 0.5), max_history=4, max_text_tokens=12)
    intentions = Intentions(users={"u3": ["mild soaps"]})
    tasks = build_tasks(config, shop.catalog, shop.sequences, shop.renderer, users, intentions)
    shown = show_tasks(tasks, config, shop.renderer, 160, 2, seed=0)
    assert [task["task"] for task in shown] == list(TASKS)
    for task in shown:
        assert task["examples_per_epoch"] == round(task["rows"] / 2)
        assert len(task["examples"]) == min(2, task["rows"])
        for example in task["examples"]:
            assert [span["trained"] for span in example["spans"]] == [False, True]
            answer = example["spans"][1]["text"]
            assert (shop.renderer.templates[task["task"]].answer == "item") == answer.startswith("<a_")
    assert shown == show_tasks(tasks, config, shop.renderer, 160, 2, seed=0)


@pytest.mark.parametrize("trained", [(True, False), (False, True)])
def test_marks_stand_around_what_is_learnt(trained):
    spans = [{"text": text, "trained": learnt} for text, learnt in zip("ab", trained, strict=True)]
    assert marked(spans) == {(True, False): "\u27e6a\u27e7b", (False, True): "a\u27e6b\u27e7"}[trained]
