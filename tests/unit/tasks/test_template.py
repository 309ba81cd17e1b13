"""The YAML of prompts: the shipped ones load, broken ones are named."""

from statistics import fmean

import pytest
import yaml

from llmrec.errors import UserError
from llmrec.resources import resource_folder
from llmrec.tasks.config import INPUTS, TASKS, TasksConfig, load_template, load_templates, save_templates

GOOD = {
    "name": "personal-search",
    "paper": "LC-Rec",
    "inputs": ["history", "query"],
    "answer": "item",
    "templates": ["{history} then {query}: "],
}


def load(folder, changes):
    raw = {key: value for key, value in (GOOD | changes).items() if value is not None}
    path = folder / "personal-search.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return load_template(path)


@pytest.mark.parametrize("name", TASKS)
def test_shipped_prompts_load(name):
    template = load_templates()[name]
    assert template.name == name
    assert len(template.templates) >= 3
    for phrasing in range(len(template.templates)):
        text = " ".join(template.fill(phrasing, {key: f"[{key}]" for key in INPUTS[name]}))
        assert all(text.count(f"[{key}]") == 1 for key in INPUTS[name])


@pytest.mark.parametrize("name", TASKS)
def test_short_prompts_load_and_are_short(name):
    short, shipped = load_templates(resource_folder("prompts") / "short")[name], load_templates()[name]
    assert len(short.templates) >= 3
    values = dict.fromkeys(INPUTS[name], "")
    words = [[len(each.fill(at, values)[0].split()) for at in range(len(each.templates))] for each in (short, shipped)]
    assert fmean(words[0]) < fmean(words[1]) / 2, "words of a phrasing"


def test_values_are_never_parsed_again(tmp_path):
    values = {"history": "{query}", "query": "{0} {{}} %s {history!r}"}
    template = load(tmp_path, {"templates": ["Say {{so}}: {history}|{query}"]})
    assert template.fill(0, values) == ["Say {so}: {query}|{0} {{}} %s {history!r}"]


def test_saved_templates_load_again(tmp_path):
    save_templates(load_templates(), tmp_path / "prompts")
    assert load_templates(tmp_path / "prompts") == load_templates()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"paper": None}, "expected the keys .*found \\['answer', 'inputs', 'name', 'templates'\\]"),
        ({"more": 1, 2: 3}, "expected the keys .*'2'.*'more'"),
        ({"paper": 2311}, "paper must be a non-empty str, found 2311"),
        ({"templates": []}, "templates must be a non-empty list"),
        ({"templates": "{history} {query}"}, "templates must be a non-empty list"),
        ({"name": "search"}, "name must be that of the file, personal-search; found 'search'"),
        ({"inputs": ["query", 7]}, "inputs of personal-search are \\['history', 'query'\\]"),
        ({"answer": "code"}, "answer must be item or text, found 'code'"),
        ({"templates": ["{history}"]}, "placeholders \\['history'\\]"),
        ({"templates": ["{history} {query} {item}"]}, "placeholders"),
        ({"templates": ["{history} {query} {query}"]}, "placeholders"),
        ({"templates": ["{history} {}"]}, "placeholders \\['history', ''\\]"),
        ({"templates": ["{history} {query"]}, "expected '}'"),
        ({"templates": ["{history} } {query}"]}, "Single '}'"),
        ({"templates": ["{history.x} {query}"]}, "placeholders"),
        ({"templates": ["{history:d} {query}"]}, "placeholders \\['history:d', 'query'\\]"),
        ({"templates": ["{history!r} {query}"]}, "placeholders \\['history!r', 'query'\\]"),
        ({"templates": [5]}, "template 5: expected text, or turns"),
        ({"templates": [["{history}", "{query}"]]}, "expected text, or turns of text, the user's first and last"),
        ({"templates": [["{history}", 5, "{query}"]]}, "expected text, or turns"),
        ({"templates": [["{history}", "so?", "{item}"]]}, "placeholders \\['history', 'item'\\]"),
    ],
)
def test_broken_yaml_is_named(tmp_path, changes, match):
    with pytest.raises(UserError, match=match) as caught:
        load(tmp_path, changes)
    assert str(tmp_path / "personal-search.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"name: [", b"\xff\xfe\x00", b"- a\n- b", b"", b"just words"])
def test_files_that_are_no_template(tmp_path, content):
    path = tmp_path / "search.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"search\.yaml"):
        load_template(path)


def test_a_folder_may_lack_tasks_that_nobody_asks_with(tmp_path):
    save_templates(load_templates(), tmp_path)
    (tmp_path / "chat.yaml").unlink()
    assert set(load_templates(tmp_path)) == set(TASKS) - {"chat"}


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"sequential.yaml: no such prompt file; tasks\.prompts"):
        load_templates(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"mixture": {"sequentail": 1.0}},
        {"mixture": {"search": -1.0}},
        {"mixture": {"search": 0.0}},
        {"mixture": {}},
        {"max_history": 0},
        {"max_text_tokens": 0},
    ],
)
def test_config_refuses(settings):
    with pytest.raises(UserError, match=r"tasks\.(mixture|max_history|max_text_tokens)"):
        TasksConfig(**settings)
