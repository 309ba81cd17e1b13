"""A Recommender as an HTTP application: `POST /recommend` with a JSON request, `GET /health`."""

import time
from threading import Lock
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HTTPRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from llmrec.console import printable
from llmrec.errors import UserError
from llmrec.recommender.recommender import Recommender
from llmrec.recommender.request import Request

MOST_ANSWERS = 1000
"""Largest number of results k of one request over HTTP."""


def make_app(recommender: Recommender) -> FastAPI:
    """Make the application.

    `POST /recommend` answers like `llmrec recommend --json`. A UserError, or a request with other fields or types,
    gives status 422 and a one-line message.
    """
    app = FastAPI(title="llmrec", description="Recommend with a language model.")
    one_at_a_time = (
        Lock()
    )  # parallel requests would share the cores; `generate` changes the model's settings while it decodes

    @app.exception_handler(UserError)
    async def mistake(request: HTTPRequest, error: UserError) -> JSONResponse:
        return JSONResponse({"error": printable(str(error))}, status_code=422)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: HTTPRequest, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return JSONResponse({"error": printable(f"{where}: {first['msg']}")}, status_code=422)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "items": len(recommender.catalog)}

    @app.post("/recommend")
    def recommend(request: Request) -> dict[str, Any]:
        if request.k > MOST_ANSWERS:
            raise UserError(f"k {request.k}: expected at most {MOST_ANSWERS}.")
        started = time.perf_counter()
        with one_at_a_time:
            items = recommender.answer(request)
        return {
            "items": [item.to_dict() for item in items],
            "reason": items.reason,
            "notes": items.notes,
            "seconds": round(time.perf_counter() - started, 4),
        }

    return app
