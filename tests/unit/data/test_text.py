import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrec.data.text import clean_record, clean_text, fill_template, parse_literal, parse_template, plain_text
from llmrec.errors import UserError


@pytest.mark.parametrize(
    ("published", "clean"),
    [
        (None, ""),
        (float("nan"), ""),
        (12.5, "12.5"),
        ("  two\n words ", "two words"),
        ("['a', \"b\"]", "a, b"),
        ("[bracketed] title [2]", "[bracketed] title [2]"),
        ("[not, a literal]", "[not, a literal]"),
        ([["Beauty", "Nails"], ["Beauty"]], "Beauty, Nails"),
        ({"Size:": " 50 ml"}, "50 ml"),
        ("<b>Bold</b> &amp; <br/>plain", "Bold & plain"),
        ("double &amp;amp; escaped", "double & escaped"),
        ("<style>p {x: y}</style>kept", "kept"),
        ("3 < 4 > 2", "3 < 4 > 2"),
    ],
)
def test_clean_text(published, clean):
    assert clean_text(published) == clean


def test_paragraphs_join_as_prose_and_lists_as_lists():
    record = {"description": ["One.", "Two."], "categories": ["A", "B"]}
    assert clean_record(record) == {"description": "One. Two.", "categories": "A, B"}


@pytest.mark.parametrize("text", ["__import__('os')", "f(", "[" * 5000, "'\\ud800'", ""])
def test_parse_literal_raises_value_error_only(text):
    with pytest.raises(ValueError, match="not a Python literal"):
        parse_literal(text)


def fill(template: str, **values: str) -> str:
    return fill_template(parse_template(template, list(values)), values)


@pytest.mark.parametrize(
    ("template", "values", "text"),
    [
        ("{t}. {b}. {c}", {"t": "Pen", "b": "Acme", "c": "Office"}, "Pen. Acme. Office"),
        ("{t}. {b}. {c}", {"t": "Pen", "b": "", "c": "Office"}, "Pen. Office"),
        ("{t}, {b}", {"t": "Pen", "b": ""}, "Pen"),
        ("{t} ({b})", {"t": "Pen", "b": ""}, "Pen"),
        ("{t} ({b})", {"t": "Pen", "b": "Acme"}, "Pen (Acme)"),
        ("{t}. Brand: {b}.", {"t": "Pen", "b": ""}, "Pen."),
        ("{t} by {b}.", {"t": "", "b": "Acme"}, "by Acme."),
        ("{t}. {b}", {"t": "Acme Inc.", "b": "x"}, "Acme Inc. x"),
        ("{t}\n\n{b}", {"t": " a  b ", "b": "c"}, "a b c"),
        ("{t} {{{b}}}", {"t": "a", "b": "c"}, "a {c}"),
        ("{t}", {"t": "{b} {0} %s"}, "{b} {0} %s"),
        ("{t}. {b}", {"t": "", "b": ""}, ""),
    ],
)
def test_template(template, values, text):
    assert fill(template, **values) == text


@pytest.mark.parametrize("template", ["{unknown}", "{title", "no field", "{}", "{title!r}", "{title:>9}", "{title.x}"])
def test_bad_template_is_one_line_that_names_it(template):
    with pytest.raises(UserError, match="template") as error:
        parse_template(template, ["title", "brand"])
    assert "\n" not in str(error.value)


def test_unknown_field_names_it_and_the_known_ones():
    with pytest.raises(UserError, match=r"no field 'colour'.*some of \{title\} \{brand\}, or '' for all of them"):
        parse_template("{colour}", ["title", "brand"])


NAMES = ["Meta: _brand", "size {cm}", "wow!", "Color (shopify.color)", "a b", "%s", "0", "{", "}", "x}. {y"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_fields_are_data(name):
    assert fill("{title}. Size: {" + name + "}", **{"title": "Pen", name: "9"}) == "Pen. Size: 9"


@given(st.lists(st.text(st.sampled_from("ab{}:! %."), min_size=1, max_size=4), min_size=1, max_size=3, unique=True))
def test_a_template_of_one_field_finds_it(names):
    for name in names:
        assert [slot.field for slot in parse_template("{" + name + "}", names)] == [name]


@given(st.text(st.sampled_from("<>/&;ab amplt#39 \n!-")) | st.text())
def test_plain_text_stays_plain(text):
    assert plain_text(plain_text(text)) == plain_text(text)


@given(st.text(), st.text())
def test_values_are_never_parsed_and_never_lost(title, brand):
    text = fill("{t} | {b}", t=title, b=brand)
    assert text.split() == [
        word for part in (title, "|" if title.strip() and brand.strip() else "", brand) for word in part.split()
    ]
