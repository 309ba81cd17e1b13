"""A visit of the web page in Chromium, on a desktop and on a phone, in light and dark.

pip install -e ".[serve,browser,test]"; apt-get install chromium
python -m pytest -m slow tests/integration/test_page.py
"""

import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi_offline", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

import chromium
from playwright.sync_api import Browser, Route, expect

from llmrec.collaborative.fusion import FusionWeights
from llmrec.data import Catalog
from llmrec.decode.rankings.fusion import FEATURES
from llmrec.embed.encoder import EmbedConfig
from llmrec.index.dense import DenseIndex
from llmrec.model.adapter import DenseHead
from llmrec.model.config import BaseConfig
from llmrec.quantize.tokenizer import ItemTokenizer
from llmrec.recommender.recommender import Recommender

pytestmark = pytest.mark.slow

TITLE = "Nova gentle soap"
HTML = "<img src=x onerror='document.title=1'>"


@pytest.fixture(scope="module")
def model(tiny_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of an untrained recommender with all three rankings."""
    torch.manual_seed(0)
    tokenizer = ItemTokenizer(levels=2, codes=4, embed=EmbedConfig(encoder="tfidf-svd", dim=8)).fit(tiny_catalog)
    config = BaseConfig(hidden_size=32, layers=1, heads=4, vocabulary=320, context=160)
    recommender = Recommender.from_base(None, tokenizer, config=config)
    texts = tokenizer.embed(tiny_catalog)
    recommender.store = replace(recommender.store, dense=DenseIndex.of(DenseHead(32, texts.shape[1]), texts))
    recommender.fusion_weights = FusionWeights([1.0] * 4, [1.0] * 4, 0.0, {}, list(FEATURES))
    folder = tmp_path_factory.mktemp("page") / "model"
    recommender.save_pretrained(folder)
    return folder


@contextmanager
def _served(folder: Path, token: str | None = None) -> Iterator[str]:
    from llmrec.serve.http import make_app
    from llmrec.serve.limits import Limits
    from llmrec.serve.live import LiveBundle
    from llmrec.serve.metrics import Metrics
    from llmrec.serve.server import Server
    from llmrec.serve.service import Service

    service = Service(LiveBundle(lambda: Recommender.from_pretrained(folder), folder), Limits(), Metrics())
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = Server(make_app(service, token), Limits())
        thread = threading.Thread(target=server.listen, args=(listening,))
        thread.start()
        try:
            while service.bundle.recommender is None:
                assert service.failure is None
                time.sleep(0.05)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    """Where the page is; the bundle's items can be changed."""
    with _served(model) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.launched() as browser:
        yield browser


class Visit(chromium.Visit):
    """A visit of the web page."""

    def check(self) -> None:
        """Neither a fault nor anything that a text of the catalogue put there."""
        super().check()
        assert self.page.locator("img").count() == 0
        assert self.page.title() == "llmrec"

    def answers(self) -> list[str]:
        """The ids of the items recommended."""
        return self.page.locator(".answer").evaluate_all("all => all.map(each => each.dataset.id)")

    def button(self, name: str, within: str = "body") -> Any:
        """The first button with this name."""
        return self.page.locator(within).get_by_role("button", name=name).first


@pytest.mark.parametrize("size", chromium.SIZES)
def test_a_whole_visit(browser: Browser, address: str, size: str) -> None:
    visit = Visit(browser, address, size)
    page = visit.page
    expect(page.locator("#model")).to_contain_text("ranked by fusion")
    expect(page.locator(".start button")).to_have_count(6)
    visit.check()

    # Search, and build a history: by keyboard on the desktop, by touch on the phone.
    if size == "desktop":
        page.keyboard.press("/")
        page.keyboard.type("alba soap")
        expect(page.locator("#found .pick")).to_have_count(1)
        page.keyboard.press("ArrowDown")
        page.keyboard.press("Enter")
    else:
        page.get_by_label("Search the catalogue").fill("alba soap")
        page.locator("#found .pick").tap()
    expect(page.locator("#history li")).to_have_count(1)
    expect(page.locator(".answer")).to_have_count(10)
    assert "i1" not in visit.answers()
    visit.button("Add to history", ".answer").click()
    expect(page.locator("#history li")).to_have_count(2)

    # A wish, and why the first item is there.
    page.get_by_label("Wish").fill("gentle balm")
    page.get_by_label("Wish").press("Enter")
    page.wait_for_function("location.hash.includes('gentle')")
    expect(page.locator("#results")).not_to_have_attribute("aria-busy", "true")
    asked = list(visit.requests)
    page.wait_for_timeout(1000)  # longer than the pause in typing after which the page asks by itself
    assert visit.requests == asked, "Enter has asked already"
    why = visit.button("Why?")
    expect(why).to_have_attribute("aria-expanded", "false")
    why.click()
    parts = page.locator(".why tbody th")
    expect(parts).to_have_count(5)  # the wish, its two words, two items
    assert {"“gentle” word", "“balm” word"} <= set(parts.all_inner_texts())
    expect(page.locator(".why p").first).to_contain_text("oved")
    visit.check()

    # A filter by a click on a field, and what is left of it.
    chip = page.locator(".answer .fields button[aria-label^='Only brand']").first
    brand = chip.inner_text()
    chip.click()
    expect(page.locator("#filters")).to_contain_text(f"brand: {brand}")
    expect(page.locator("#state")).to_contain_text(f"where brand={brand} leaves 5")
    visit.button(f"Remove the filter brand: {brand}").click()
    expect(page.locator(".answer")).to_have_count(10)

    # The items with the same first code.
    code = page.locator(".answer .code").first
    prefix = code.get_attribute("aria-label").rpartition(" ")[2]
    code.click()
    expect(page.locator("#prefix-state")).to_contain_text("with these codes")
    assert page.locator("#prefix-items li").count() >= 1
    for label in page.locator("#prefix-items li .code:first-child").evaluate_all("all => all.map(each => each.title)"):
        assert label.endswith(prefix)
    visit.check()
    page.keyboard.press("Escape")
    expect(page.locator("#prefix")).not_to_be_visible()

    # All rankings beside each other.
    visit.button("Side by side").click()
    expect(page.locator(".columns > section")).to_have_count(3)
    expect(page.locator(".columns li")).to_have_count(30)
    visit.check()
    visit.button("One list").click()
    expect(page.locator(".answer")).to_have_count(10)

    # A new item; the first try has an id that is there already.
    visit.button("Add an item").click()
    page.locator("#add").get_by_label("Id", exact=True).fill("i1")
    page.locator("#add").get_by_label("Title").fill(TITLE)
    page.locator("#add").get_by_label("Brand").fill(f"Nova {size}")
    visit.button("Add", "#add-form").click()
    expect(page.locator("#add-error")).to_contain_text("is in the catalogue already")
    visit.check()
    page.locator("#add").get_by_label("Id", exact=True).fill(f"new/{size}")
    visit.button("Add", "#add-form").click()
    expect(page.locator("#added")).to_contain_text(TITLE)
    page.get_by_label("Value").fill(f"nova {size}")
    visit.button("Set").click()
    expect(page.locator(".answer")).to_have_count(1)
    assert visit.answers() == [f"new/{size}"]
    expect(page.locator(".answer h3")).to_contain_text(f"{TITLE} cold")
    expect(page.locator("#added")).to_contain_text("at place 1 of these recommendations")
    visit.button("Why?").click()
    expect(page.locator(".why tbody th")).to_have_count(5)
    visit.check()
    visit.button("Add to history", ".answer").click()
    expect(page.locator("#history")).to_contain_text(TITLE)
    expect(page.locator("#results")).to_contain_text("No item passes the filters")
    visit.check()

    # A reload shows the same request.
    page.reload()
    expect(page.locator("#history li")).to_have_count(3)
    expect(page.locator("#history")).to_contain_text(TITLE)
    expect(page.get_by_label("Wish")).to_have_value("gentle balm")
    assert [line for line in visit.complaints if "409 (Conflict)" not in line] == []  # the refused item, see above
    assert all(url.startswith(address) for url in visit.requests)
    assert page.request.delete(f"{address}v1/items/new/{size}").ok  # the next visit finds the shop as it was
    page.close()


def test_texts_of_the_catalogue_are_no_html(browser: Browser, address: str) -> None:
    """The catalogue removes tags itself; here a server that does not is played."""
    visit = Visit(browser, "about:blank", "desktop")
    page = visit.page

    def with_html(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=re.sub(r'"(title|brand)":"', rf'"\1":"{HTML} ', answer.text()))

    page.route(re.compile(r"/v1/(items|recommend|explain)"), with_html)
    page.goto(f"{address}#item=i1&item=i2&wish=%3Cimg+src%3Dx%3E+balm")
    expect(page.locator("#history")).to_contain_text(HTML)
    expect(page.locator(".answer h3").first).to_contain_text(HTML)
    expect(page.locator(".answer .fields").first).to_contain_text(HTML)
    page.get_by_label("Search the catalogue").fill("soap")
    expect(page.locator("#found .pick").first).to_contain_text(HTML)
    visit.button("Why?").click()
    expect(page.locator(".why tbody")).to_contain_text(HTML)
    expect(page.locator(".why tbody")).to_contain_text("“<img” word")
    page.locator(".answer .code").first.click()
    expect(page.locator("#prefix-items .pick").first).to_contain_text(HTML)
    page.keyboard.press("Escape")
    visit.button("Side by side").click()
    expect(page.locator(".columns .pick").first).to_contain_text(HTML)
    assert page.locator("img").count() == 0
    assert page.title() == "llmrec"
    assert visit.complaints == []
    page.close()


def test_a_new_item_is_removed(browser: Browser, address: str) -> None:
    visit = Visit(browser, address, "desktop")
    visit.button("Add an item").click()
    visit.page.locator("#add").get_by_label("Id", exact=True).fill("short-lived")
    visit.page.locator("#add").get_by_label("Title").fill("Gentle soap")
    visit.button("Add", "#add-form").click()
    expect(visit.page.locator("#added")).to_contain_text("Gentle soap")
    visit.button("Remove it").click()
    expect(visit.page.locator("#added")).not_to_be_visible()
    visit.page.get_by_label("Search the catalogue").fill("short-lived")
    expect(visit.page.locator("#found-state")).to_have_text("No item has all these words.")
    assert visit.complaints == []
    visit.page.close()


def test_an_error_is_told_and_another_try_helps(browser: Browser, address: str) -> None:
    visit = Visit(browser, address, "phone")
    page = visit.page
    expect(page.locator(".start button")).to_have_count(6)
    page.route("**/v1/recommend*", lambda route: route.abort())
    page.locator(".start button").first.click()
    expect(page.get_by_role("alert").filter(has_text="The server does not answer.")).to_be_visible()
    visit.check()
    page.unroute("**/v1/recommend*")
    visit.button("Try again").click()
    expect(page.locator(".answer")).to_have_count(10)
    expect(page.locator("#error")).not_to_be_visible()
    page.close()


def test_the_page_asks_for_the_token(browser: Browser, model: Path) -> None:
    with _served(model, "open sesame") as address:
        visit = Visit(browser, address, "desktop")
        page = visit.page
        expect(page.locator("#token")).to_be_visible()
        visit.check()
        page.locator("#token-value").fill("wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#token-error")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#token")).to_be_visible()
        page.locator("#token-value").fill("open sesame")
        page.keyboard.press("Enter")
        expect(page.locator(".start button")).to_have_count(6)
        page.reload()
        expect(page.locator(".start button")).to_have_count(6)
        page.close()
