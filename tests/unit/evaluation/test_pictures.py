"""Pictures of losses and slices, as images that a page can hold."""

import base64
import xml.etree.ElementTree as ElementTree

from llmrec.evaluation.pictures import as_uri, loss_curve, slice_bars

LOG = [
    {"step": 10, "loss": 5.0},
    {"step": 20, "loss": 4.0},
    {"step": 20, "eval_loss": 3.0},
    {"step": 30, "train_loss": 4.5},
]


def entry(recall: float) -> dict:
    return {"recall@10": recall, "recall@10_ci": [recall - 0.1, recall + 0.1]}


METRICS = {
    "systems": {
        "llmrec": {"all": entry(0.5), "warm": entry(0.6), "cold": entry(0.0)},
        "item-knn": {"all": entry(0.3), "warm": entry(0.3), "cold": entry(0.0)},
    }
}


def texts(uri: str) -> set[str]:
    """The texts in an SVG image."""
    kind, content = uri.split(",", 1)
    assert kind == "data:image/svg+xml;base64"
    picture = base64.b64decode(content).decode()
    assert "prefers-color-scheme:dark" in picture
    assert "currentColor" in picture
    assert "http" not in picture.replace("http://www.w3.org/", "").replace("http://purl.org/", "").replace(
        "http://creativecommons.org/", ""
    ).replace("https://matplotlib.org/", ""), "names of the format, and nothing that is loaded"
    return {"".join(element.itertext()).strip() for element in ElementTree.fromstring(picture).iter()}


def test_loss_curve() -> None:
    found = loss_curve(LOG, "loss", "training loss")
    assert found is not None
    assert {"step", "training loss"} <= texts(found)
    assert found == loss_curve(LOG, "loss", "training loss"), "no date, no random name"


def test_no_curve_of_one_value() -> None:
    assert loss_curve(LOG, "eval_loss", "validation loss") is None
    assert loss_curve([], "loss", "training loss") is None


def test_slice_bars() -> None:
    assert {"all", "warm", "cold", "llmrec", "item-knn", "recall@10"} <= texts(
        slice_bars(METRICS, ["all", "warm", "cold"], "item-knn")
    )
    alone = texts(slice_bars(METRICS, ["all", "warm"], None))
    assert "item-knn" not in alone
    assert "cold" not in alone


def test_as_uri() -> None:
    assert as_uri("png", b"\x89PNG") == "data:image/png;base64,iVBORw=="
