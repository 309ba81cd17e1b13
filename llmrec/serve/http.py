"""A Recommender as an HTTP application. `GET /docs` shows its routes, `llmrec serve` runs it.

app = make_app(Service(LiveBundle(lambda: Recommender.from_pretrained("model")), Limits(), Metrics()))
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any

import numpy as np
import polars as pl
from anyio import to_thread
from fastapi import Body, FastAPI, Path, Query
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from llmrec import __version__
from llmrec.checks import check_texts
from llmrec.data import Catalog
from llmrec.decode.config import RankingName
from llmrec.errors import UserError
from llmrec.model.tokens import token_names
from llmrec.recommender.explain import parse_prefix
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.request import Answer, Request
from llmrec.serve import schemas
from llmrec.serve.guard import Guard, error_response
from llmrec.serve.limits import ApiError, Limits
from llmrec.serve.live import AddItems, RemoveItem, unknown_item
from llmrec.serve.page import add_page
from llmrec.serve.service import Service
from llmrec.serve.why import RequestPart, measured, parts_of, questions, sampled

DESCRIPTION = """Recommend the items of one catalogue with a language model.

Every error has the same form: `{"error": {"code", "message", "field"}, "request_id"}`. If the server has a token, send
it as `Authorization: Bearer TOKEN`."""
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorBody, "description": words}
    for status, words in {
        400: "Not JSON",
        401: "The token is missing or wrong",
        408: "The body did not arrive in time",
        413: "The body is too large",
        415: "The content type is not application/json",
        422: "The request is wrong or exceeds a limit; `field` says where",
        429: "Too many requests; Retry-After says when to try again",
        503: "The model is being loaded; Retry-After says when to try again",
        504: "No answer within the deadline",
    }.items()
}
MISSING: dict[str, Any] = {"model": schemas.ErrorBody, "description": "No such item"}
MOST_FOUND = 100
"""Largest number of items of one page."""
WITHOUT_SCORES = ("quota", "specgr", "session")
"""Rankings whose score of an item depends on the other items of the list."""
Ranking = Annotated[
    RankingName | None, Query(description="One of `rankings` in GET /v1/model; default: what this server ranks by")
]


def make_app(service: Service, token: str | None = None, patient: bool = False) -> FastAPI:
    """Make the application.

    Args:
        service: answers; the application starts and stops it.
        token: what clients must send; None: nothing.
        patient: whether the application starts only when the bundle is loaded, so that the server listens only then.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        if patient:
            await service.until_loaded()
        yield
        await service.stop()

    app: FastAPI = FastAPIOffline(title="llmrec", version=__version__, description=DESCRIPTION, lifespan=lifespan)
    app.add_middleware(Guard, limits=service.limits, metrics=service.metrics, token=token)
    _add_errors(app, service)
    _add_recommend(app, service)
    _add_items(app, service)
    _add_state(app, service)
    add_page(app)
    return app


WRONG = {
    "unexpected_keyword_argument": f"no such field; known are {', '.join(sorted(schemas.FIELDS))}",
    "extra_forbidden": "no such field",
    "sequence_str": "found one text, expected a list of texts",
    "string_type": 'found no text, expected one; write a number in quotation marks, such as "7"',
}
"""Type of an error of pydantic -> what it means, where its own words speak of Python."""


def _add_errors(app: FastAPI, service: Service) -> None:
    def respond(request: HTTPRequest, error: ApiError) -> JSONResponse:
        service.metrics.refused.labels(error.code).inc()
        return error_response(error, request.state.request_id)

    @app.exception_handler(ApiError)
    async def wrong(request: HTTPRequest, error: ApiError) -> JSONResponse:
        return respond(request, error)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: HTTPRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["loc"][0] == "body" and "json" not in request.headers.get("content-type", ""):
            return respond(request, ApiError(415, "not_json", "Send JSON, as Content-Type: application/json."))
        if first["type"] == "json_invalid":
            return respond(request, ApiError(400, "not_json", "The body is not JSON."))
        parts = [str(part) for part in first["loc"][1:] if part not in ("one", "list")]
        cause = first.get("ctx", {}).get("error") or WRONG.get(first["type"])
        if isinstance(cause, UserError):
            parts, message = [*parts, *([cause.field] if cause.field else [])], str(cause)
        else:
            message = f"{'.'.join(parts) or first['loc'][0]}: {cause or first['msg']}."
        return respond(request, ApiError(422, "invalid_request", message, ".".join(parts) or None))

    @app.exception_handler(HTTPException)
    async def refused(request: HTTPRequest, error: HTTPException) -> JSONResponse:
        code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
        found = ApiError(error.status_code, code, f"{request.method} {request.url.path:.200}: {error.detail}.")
        response = respond(request, found)
        response.headers.update(error.headers or {})
        return response


def _add_recommend(app: FastAPI, service: Service) -> None:
    @app.post("/v1/recommend", responses=ERRORS, tags=["recommend"])
    async def recommend(
        asked: Annotated[schemas.Asked, Body(openapi_examples=schemas.EXAMPLES)],
        ranking: Ranking = None,
    ) -> schemas.Answered | list[schemas.Answered]:
        """The best items after a history of item ids, for a request in words, or for both.

        A list of requests gets a list of answers, in the same order; if one of them is wrong, all are refused.
        """
        started = time.perf_counter()
        requests = asked if isinstance(asked, list) else [asked]
        own = service.recommender
        answers = await service.recommend(own, requests, isinstance(asked, list), ranking)
        seconds = round(time.perf_counter() - started, 4)
        found = [
            schemas.Answered.model_validate(
                {
                    "items": [item.to_dict() | known for item, known in zip(answer, _known(own, answer), strict=True)],
                    "reason": answer.reason,
                    "notes": answer.notes,
                    "seconds": seconds,
                }
            )
            for answer in answers
        ]
        return found if isinstance(asked, list) else found[0]

    app.post("/recommend", responses=ERRORS, tags=["recommend"], deprecated=True)(recommend)

    @app.post("/v1/explain", responses={**ERRORS, 404: MISSING}, tags=["recommend"])
    async def explain(asked: schemas.Explain, ranking: Ranking = None) -> schemas.Explained:
        """Why an item is recommended: its score and rank without the prompt, each item of the history, each word.

        The first phrasing counts. Filters decide the ranks, not the scores. If there are too many parts, the last ones
        are not measured, and a note says so.
        """
        own = service.recommender
        if asked.item_id not in own.catalog.index:
            raise unknown_item(asked.item_id)
        if (name := ranking or own.ranker.name) in WITHOUT_SCORES:
            message = f"ranking {name} scores lists, not items; choose another of GET /v1/model's rankings."
            raise ApiError(422, "invalid_request", message, "ranking")
        parts, asked_of, notes = await to_thread.run_sync(_left_out, asked, own, service.limits)
        answers = await service.recommend(own, asked_of, False, ranking)
        whole, *without = measured(asked.item_id, answers)
        return schemas.Explained(
            item_id=asked.item_id,
            ranking=name,
            score=whole.score,
            rank=whole.rank,
            parts=[
                schemas.Part(
                    kind=part.kind,
                    place=part.place,
                    text=part.text,
                    score=less.score,
                    rank=less.rank,
                    change=whole.lead - less.lead,
                )
                for part, less in zip(parts, without, strict=True)
            ],
            notes=[*answers[0].notes, *notes],
        )


def _add_items(app: FastAPI, service: Service) -> None:
    changing: dict[int | str, dict[str, Any]] = {
        **ERRORS,
        409: {"model": schemas.ErrorBody, "description": "The catalogue does not allow this change"},
    }

    @app.post("/v1/items", status_code=201, responses=changing, tags=["items"])
    async def add_items(new: schemas.NewItems) -> schemas.ItemsAdded:
        """Add items, without training; other items keep their codes.

        The answer comes when the change is on the disk. Reads go on meanwhile, and later ones see the change.
        """
        change = await to_thread.run_sync(_addition, new, service)
        unknown = [name for name in change.catalog.fields if name not in service.recommender.catalog.fields]
        done = await service.change(change)
        return schemas.ItemsAdded(
            added=len(done.added),
            updated=done.updated,
            items=done.items,
            semantic_ids=done.semantic_ids,
            notes=[f"Left out fields that the catalogue lacks: {', '.join(unknown)}."] if unknown else [],
        )

    @app.delete("/v1/items/{item_id:path}", responses={**changing, 404: MISSING}, tags=["items"])
    async def remove_item(item_id: Annotated[str, Path(max_length=1000)]) -> schemas.ItemRemoved:
        """Remove an item. The answer comes when the change is on the disk."""
        done = await service.change(RemoveItem(item_id))
        return schemas.ItemRemoved(removed=done.removed, items=done.items)

    @app.get("/v1/items", responses=ERRORS, tags=["items"])
    def find_items(
        query: Annotated[str, Query(max_length=service.limits.text, description="Words; empty: all items")] = "",
        prefix: Annotated[
            str, Query(max_length=1000, description="First item tokens of a semantic ID, such as `<a_12><b_3>`")
        ] = "",
        limit: Annotated[int, Query(ge=1, le=MOST_FOUND)] = 20,
        offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    ) -> schemas.Items:
        """The items whose id and texts contain every word of the query; those with the words in their title first.

        With a prefix, only items whose semantic ID begins with it.
        """
        recommender = service.recommender
        rows = recommender.store.lookup.search(query)
        if prefix:
            try:
                codes = parse_prefix(prefix, recommender.ranker.renderer.vocabulary)
            except UserError as error:
                raise ApiError(422, "invalid_request", str(error), "prefix") from None
            rows = rows[(recommender.item_tokenizer.codes[rows, : len(codes)] == codes).all(axis=1)]
        return schemas.Items(items=_items(recommender, rows[offset : offset + limit]), total=len(rows))

    @app.get("/v1/items/{item_id:path}", responses={**ERRORS, 404: MISSING}, tags=["items"])
    def read_item(item_id: Annotated[str, Path(max_length=1000)]) -> schemas.Item:
        """One item."""
        recommender = service.recommender
        row = recommender.catalog.index.get(item_id)
        if row is None:
            raise unknown_item(item_id)
        return _items(recommender, np.array([row]))[0]


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", responses=ERRORS, tags=["server"])
    def read_model() -> schemas.ModelInfo:
        """What this server serves, and its limits."""
        own = service.recommender
        search = own.ranker.search
        return schemas.ModelInfo(
            llmrec=__version__,
            base_model=own.base_model,
            items=len(own.catalog),
            cold_items=int(np.count_nonzero(own.train_counts == 0)),
            fields=[name for name in own.catalog.fields if name != "title"],
            level_sizes=list(own.item_tokenizer.level_sizes),
            max_history=own.max_history,
            ranking=own.ranker.name,
            rankings=list(service.rankers(own)),
            scoring=search.config.scoring,
            beams=search.config.beams,
            can_change_items=service.bundle.folder is not None,
            limits=asdict(service.limits),
        )

    @app.get("/livez", tags=["server"])
    async def lives() -> schemas.Status:
        """Whether the server answers at all."""
        return schemas.Status(status="ok")

    @app.get("/readyz", tags=["server"], responses={503: ERRORS[503]})
    async def ready() -> schemas.Status:
        """Whether the model is loaded."""
        return schemas.Status(status="ok", items=len(service.recommender.catalog))

    app.get("/health", tags=["server"], responses={503: ERRORS[503]}, deprecated=True)(ready)

    @app.get("/metrics", tags=["server"], response_class=PlainTextResponse, responses={401: ERRORS[401]})
    async def metrics() -> PlainTextResponse:
        """Counts and times in the text format of Prometheus."""
        return PlainTextResponse(service.metrics.text(service.items_now), media_type=CONTENT_TYPE_LATEST)


def _left_out(
    asked: schemas.Explain, own: Recommender, limits: Limits
) -> tuple[list[RequestPart], list[Request], list[str]]:
    """The parts of a request, the requests that measure them, at most as many as a list may have, and notes.

    Raises:
        ApiError: the request exceeds a limit; together, the filters of all these requests have that of one request.
    """
    replace(limits, ids=max(1, limits.ids // limits.requests)).check(asked.request)
    most = max(0, limits.requests // 2 - 1)
    parts = list(islice(parts_of(asked.request, own.store, own.ranker.renderer), most + 1))
    notes = [f"Measured the first {most} parts only."] if len(parts) > most else []
    others = sampled(own.store, asked.item_id)[: min(limits.answers, limits.ids) - 1]
    return parts[:most], questions(asked.request, asked.item_id, parts[:most], others), notes


def _addition(new: schemas.NewItems, service: Service) -> AddItems:
    """The change that a request asks for.

    Raises:
        ApiError: there are too many items or too long texts, or the items have no form that a catalogue can have.
    """
    most, text = service.limits.items, service.limits.text
    if len(new.items) > most:
        raise ApiError(422, "too_large", f"items: {len(new.items):,}, expected at most {most:,}.", "items")
    for place, item in enumerate(new.items):
        for name, value in [("item_id", item.item_id), ("title", item.title), *item.fields.items()]:
            if len(value) > text or len(name) > text:
                message = f"items.{place}.{name:.80}: a text of more than {text:,} characters."
                raise ApiError(422, "too_large", message, f"items.{place}")
        if not item.item_id.strip() or {"item_id", "title"} & item.fields.keys():
            message = f"items.{place}: expected an item_id that is not empty, and item_id and title outside of fields."
            raise ApiError(422, "invalid_request", message, f"items.{place}")
    names = list(dict.fromkeys(name for item in new.items for name in item.fields))
    try:
        check_texts("items", [item.model_dump() for item in new.items])
        columns = {name: [item.fields.get(name, "") for item in new.items] for name in names}
        ids, titles = [item.item_id for item in new.items], [item.title for item in new.items]
        catalog = Catalog.from_frame(pl.DataFrame({"item_id": ids, "title": titles, **columns}), "items")
    except UserError as error:
        raise ApiError(422, "invalid_request", str(error), "items") from None
    if new.vectors is None:
        return AddItems(catalog, None, new.if_exists)
    dims = service.recommender.item_tokenizer.dims
    if len(new.vectors) != len(new.items) or any(len(vector) != dims for vector in new.vectors):
        message = f"vectors: expected {len(new.items)} of {dims} numbers, one for each item."
        raise ApiError(422, "invalid_request", message, "vectors")
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite, which is refused
        return AddItems(catalog, np.array(new.vectors, np.float32), new.if_exists)


def _known(recommender: Recommender, answer: Answer) -> list[dict[str, Any]]:
    """What is known of each item of an answer beside its texts."""
    rows = [recommender.catalog.index[item.item_id] for item in answer]
    semantic_ids = _semantic_ids(recommender, rows)
    return [
        {"semantic_id": semantic_ids[item.item_id], "training_events": int(recommender.train_counts[row])}
        for row, item in zip(rows, answer, strict=True)
    ]


def _semantic_ids(recommender: Recommender, rows: list[int]) -> dict[str, str]:
    names = token_names(recommender.item_tokenizer.level_sizes, recommender.base.token_prefix)
    return recommender.store.semantic_ids(rows, names)


def _items(recommender: Recommender, rows: np.ndarray) -> list[schemas.Item]:
    """The items in these rows, int64 [n]."""
    store, semantic_ids = recommender.store, _semantic_ids(recommender, rows.tolist())
    return [
        schemas.Item(
            item_id=row["item_id"],
            title=row["title"],
            fields={name: text for name, text in row.items() if name not in ("item_id", "title")},
            semantic_id=semantic_ids[row["item_id"]],
            training_events=int(store.train_counts[place]),
        )
        for place, row in zip(rows.tolist(), recommender.catalog.frame[rows].iter_rows(named=True), strict=True)
    ]
