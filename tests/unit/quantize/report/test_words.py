import numpy as np

from llmrec.quantize.report.report import describe_codes

TITLES = [
    *("red nail polish", "blue nail polish", "green nail polish"),
    *("gentle shampoo 2", "shampoo for kids", "dry shampoo", "red shampoo"),
    "the one and only",
]
FIRST = np.array([7, 7, 7, 2, 2, 2, 2, 5])


def embeddings() -> np.ndarray:
    """Items of a code around its axis; the second of each code stands on it."""
    axis = np.eye(3)[[0, 0, 0, 1, 1, 1, 1, 2]]
    offset = np.array([0.3, 0.0, -0.3, 0.5, 0.0, -0.4, -0.1, 0.0])
    return (axis + offset[:, None] * np.roll(axis, 1, axis=1)).astype(np.float32)


def test_codes_in_words():
    ids = [f"i{row}" for row in range(8)]
    found = describe_codes(embeddings(), FIRST, ids, TITLES)
    assert [(entry["code"], entry["items"]) for entry in found] == [(2, 4), (7, 3), (5, 1)]
    assert found[0]["typical"][0] == {"item_id": "i4", "title": "shampoo for kids"}
    assert [item["item_id"] for item in found[0]["typical"]] == ["i4", "i6", "i5"]
    assert found[1]["typical"][0]["item_id"] == "i1"
    # one word each that two titles of the code have; "red" is no commoner there, numbers are no words
    assert found[0]["words"] == ["shampoo"]
    assert set(found[1]["words"]) == {"nail", "polish"}
    # a code of one item is its title
    assert set(found[2]["words"]) == {"the", "one", "and", "only"}


def test_a_word_of_everybody_tells_nothing():
    titles = ["item a1 nail", "item b1 nail", "item c1 soap", "item d1 soap"]
    x = np.eye(4, dtype=np.float32)
    found = describe_codes(x, np.array([0, 0, 1, 1]), list("abcd"), titles)
    assert [entry["words"] for entry in found] == [["nail"], ["soap"]]


def test_titles_without_words():
    found = describe_codes(np.eye(2, dtype=np.float32), np.array([0, 1]), ["a", "b"], ["", "42"])
    assert [entry["words"] for entry in found] == [[], []]
    assert found[0]["typical"] == [{"item_id": "a", "title": ""}]
