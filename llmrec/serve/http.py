"""The Recommender over HTTP: `POST /recommend` with a JSON request, `GET /health`."""

import time
from threading import Lock
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from llmrec.errors import UserError
from llmrec.recommender.recommender import Recommender


class RecommendRequest(BaseModel):
    """What `POST /recommend` takes; the fields are those of `Recommender.recommend`."""

    model_config = ConfigDict(extra="forbid")

    history: list[str] = Field(default_factory=list, description="item ids, oldest first")
    prompt: str | None = Field(default=None, description="what is asked for, in plain words")
    k: int = Field(default=10, ge=1, le=1000, description="answers at most")
    exclude: list[str] = Field(default_factory=list, description="items that must not come out")
    include_seen: bool = Field(default=False, description="let items of the history come out too")
    where: dict[str, str] = Field(default_factory=dict, description="only items whose field has this value")
    allow: list[str] | None = Field(default=None, description="only these items may come out")
    offsets: dict[str, float] | None = Field(default=None, description="item id -> what to add to its score")
    max_per_field: dict[str, int] = Field(default_factory=dict, description="field -> answers of one value at most")
    max_per_code: int | None = Field(default=None, description="answers with one first code at most")
    phrasings: int = Field(default=1, ge=1, description="ask in so many phrasings, take the mean")
    exact: bool = Field(default=False, description="the provably best by their codes alone, for more forward passes")


def make_app(recommender: Recommender) -> FastAPI:
    """The application; answers as `recommend --json` does, and a user's mistake with 422 and one line."""
    app = FastAPI(title="llmrec", description="Recommend with a language model.")
    one_at_a_time = Lock()  # two would share the cores, and `generate` swaps the model's settings while it decodes

    @app.exception_handler(UserError)
    async def mistake(request: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=422)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "items": len(recommender.catalog)}

    @app.post("/recommend")
    def recommend(request: RecommendRequest) -> dict[str, Any]:
        started = time.perf_counter()
        with one_at_a_time:
            items = recommender.recommend(**request.model_dump())
        return {
            "items": [item.to_dict() for item in items],
            "reason": items.reason,
            "seconds": round(time.perf_counter() - started, 4),
        }

    return app
