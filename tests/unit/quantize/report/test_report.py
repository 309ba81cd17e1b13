import io
import json

import numpy as np
import pytest
from scipy.sparse import csr_array

from llmrec.collaborative.behaviour import Behaviour
from llmrec.quantize import Quantizer, Report, TokenizeConfig, quantizer_class
from llmrec.quantize.collisions import dedup
from llmrec.quantize.report import map_picture, measure, picture, save_picture
from llmrec.quantize.report.figures import BLOCK, companions, embedding_hit_rate, nearest, order_by_content

N = 120
IDS, TITLES = [f"i{row}" for row in range(N)], [f"thing {row % 4}" for row in range(N)]
X = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32)
TIMES = {"method": "rq-kmeans", "fit_seconds": 1.0, "encode_items_per_second": 2.0}


def fitted(levels: int = 2, codes: int | list[int] = 8) -> tuple[Quantizer, np.ndarray]:
    quantizer = quantizer_class("rq-kmeans")(TokenizeConfig(levels=levels, codes=codes, iterations=5)).fit(X)
    return quantizer, quantizer.encode(X)


def behaviour() -> Behaviour:
    pairs = np.zeros((N, N), np.int64)
    for row in range(0, 40, 2):
        pairs[row, row + 1] = pairs[row + 1, row] = 1
    return Behaviour(np.ones(N, np.int64), csr_array(pairs))


@pytest.fixture
def report() -> Report:
    quantizer, codes = fitted()
    figures = measure(X, codes, dedup(codes)[0], quantizer, 0, behaviour(), IDS, TITLES)
    return Report(**TIMES, **figures)


def test_is_json_with_a_number_per_level(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for name in ("usage", "perplexity", "entropy", "gini", "prefix_cohesion", "distortion_by_level", "level_sizes"):
        assert len(report[name]) == report["levels"] == 2
    assert report["distortion"] == report["distortion_by_level"][-1]
    assert sum(entry["items"] for entry in report["words"]) == report["items"] == N


def test_figures_are_of_the_codes_before_disambiguation(report):
    codes = fitted()[1]
    assert report["collision_rate"] == report["collision_rate_after"] == 1 - len(np.unique(codes, axis=0)) / N
    assert report["unique_after"] is True


def test_embeddings_are_read_a_block_at_a_time():
    class Guarded:
        """Rows that refuse to be read whole."""

        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, asked: slice | np.ndarray) -> np.ndarray:
            part = x[asked]
            assert len(part) <= BLOCK
            return part

    x = np.random.default_rng(0).normal(size=(2 * BLOCK + 5, 2)).astype(np.float32)
    quantizer = quantizer_class("rq-kmeans")(TokenizeConfig(levels=2, codes=4, iterations=2)).fit(x)
    codes, ids = quantizer.encode(x), range(len(x))
    assert measure(Guarded(), codes, codes, quantizer, 0, item_ids=ids, titles=[""] * len(x)) == measure(
        x, codes, codes, quantizer, 0, item_ids=ids, titles=[""] * len(x)
    )


def test_the_order_of_the_items_changes_no_figure():
    """With three codes, most of the 20 nearest reconstructions are equally near: rows must not decide between them."""
    quantizer = quantizer_class("kmeans")(TokenizeConfig("kmeans", levels=1, codes=3)).fit(X)
    x = np.concatenate([X, X[:30]])
    ids, titles = [f"i{row}" for row in range(len(x))], ["thing"] * len(x)
    pairs = csr_array((np.ones(40, np.int64), (np.arange(40), np.arange(100, 140))), (len(x), len(x)))
    found = []
    for seed in (None, 0, 1):
        rows = np.arange(len(x)) if seed is None else np.random.default_rng(seed).permutation(len(x))
        codes = quantizer.encode(x[rows])
        events = Behaviour(np.ones(len(x), np.int64), pairs[rows][:, rows])
        named = [ids[row] for row in rows]
        found.append(measure(x[rows], codes, codes, quantizer, 0, events, named, titles))
    for other in found[1:]:
        for name in ("neighbour_jaccard@20", "rbo@20", "words"):
            assert other[name] == found[0][name]
        assert other["emb_hr@20"] == pytest.approx(found[0]["emb_hr@20"])


def test_what_reassignment_left():
    quantizer, codes = fitted()
    settled = codes.copy()
    settled[:, 1] = np.arange(N) % 8  # as good as any
    found = measure(X, codes, settled, quantizer, 0)
    assert found["collision_rate_after"] == 1 - len(np.unique(settled, axis=0)) / N
    assert found["collision_rate"] == 1 - len(np.unique(codes, axis=0)) / N
    assert found["unique_after"] is False
    assert (found["emb_hr@20"], found["words"]) == (None, None)


def test_hit_rates_are_of_the_items_with_company(report):
    quantizer, codes = fitted()
    known = np.arange(40)
    together = companions(behaviour(), known)
    order = order_by_content(X)  # decides between equal reconstructions
    for space, x in (("raw", X), ("reconstruction", quantizer.decode(codes))):
        near = order[nearest(x[order], np.argsort(order)[known])]
        assert report["emb_hr@20"][space] == pytest.approx(embedding_hit_rate(together, near))


def test_a_log_without_company_has_no_hit_rate():
    quantizer, codes = fitted()
    nobody = Behaviour(np.ones(N, np.int64), csr_array((N, N), dtype=np.int64))
    assert measure(X, codes, codes, quantizer, 0, nobody)["emb_hr@20"] is None


def test_the_table(report):
    table = str(report)
    assert table.startswith("rq-kmeans: 120 items, 2 levels x 8 codes\n")
    assert f"{report['gini'][1]:.3f}" in table
    assert f"{report['rbo@20']:.4f} (RBO@20)" in table
    assert "EmbHR@20" in table
    assert len({len(line) for line in table.splitlines()[1:4]}) == 1  # columns stand below their heads


def test_the_table_of_what_could_not_be_measured(report):
    bare = Report(report | {"distortion_by_level": None, "distortion": None, "emb_hr@20": None, "words": None})
    assert "distortion          - of the variance" in str(bare)
    assert "EmbHR" not in str(bare)
    assert bare.words() == ""


def test_sizes_that_differ_are_all_named():
    quantizer, codes = fitted(codes=[8, 4])
    report = Report(**TIMES, **measure(X, codes, codes, quantizer, 0))
    assert report.headline == "rq-kmeans: 120 items, levels of 8, 4 codes"


def test_words_show_a_few_codes(report):
    text = report.words(most=2)
    largest = report["words"][0]
    assert text.startswith(f"code {largest['code']}: {largest['items']} items; ")
    assert largest["typical"][0]["title"] in text
    assert text.endswith("and 6 more first-level codes; --json shows all")
    assert "more" not in report.words(most=8)


@pytest.mark.parametrize(
    "missing", [{}, {"distortion_by_level": None, "words": None}, {"distortion_by_level": None, "distortion": None}]
)
def test_the_picture(tmp_path, report, missing):
    path = tmp_path / "report.png"
    save_picture(Report(report | missing), path, X, fitted()[1][:, 0])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000


def test_the_curve_of_the_training_is_shown(tmp_path, report, monkeypatch):
    training = {"epochs": [5, 10], "loss": [2.0, 1.0], "collision_rate": [0.4, 0.25], "kept": 10}
    assert "by epoch" not in str(report)
    assert "collisions by epoch 5: 40.00%, 10: 25.00%; kept 10" in str(Report(report | {"training": training}))
    drawn = []
    monkeypatch.setattr(picture, "_draw_training", lambda axes, figures: drawn.append(figures))
    for content in ({"training": training}, {"training": None}):
        save_picture(Report(report | content), tmp_path / "report.png", X, fitted()[1][:, 0])
    assert drawn == [training]
    monkeypatch.undo()
    save_picture(Report(report | {"training": training}), tmp_path / "report.png", X, fitted()[1][:, 0])


@pytest.mark.parametrize("x", [X[:, :1], np.ones((N, 3), np.float32)], ids=["one dimension", "constant"])
def test_the_picture_of_what_has_no_plane(tmp_path, report, x):
    save_picture(report, tmp_path / "report.png", x, fitted()[1][:, 0])
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_the_map_alone_is_a_transparent_picture(report):
    from matplotlib.image import imread

    pixels = imread(io.BytesIO(map_picture(report, X, fitted()[1][:, 0])), format="png")
    assert pixels.shape == (540, 840, 4)
    assert pixels[0, 0, 3] == 0
    assert pixels[..., 3].max() > 0.5
