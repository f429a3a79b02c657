"""The page's server: its API, and the files of the page.

| | |
|---|---|
| `GET /` | the page; everything else it fetches by itself |
| `GET /api/runs`, `/api/runs/{run}/...` | runs, their curves, samples, warnings, configuration |
| `GET /api/picture/{path}` | a picture inside a run directory |
| `GET /api/compare`, `/api/comparable`, `/api/votes` | two folders side by side; votes |
| `GET /api/models`, `POST /api/draw` | the models that can draw; a drawing as events |

Run directories are only read.
"""

import mimetypes
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.responses import FileResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from policy.errors import UserError
from rewards.middleware import LimitBody, LimitConcurrency, detail
from studio.door import Door
from studio.pairs import comparable, compare
from studio.playground import GenerateRequest, Playground
from studio.run_folders import NotThere, RunFolders, last_step, state
from studio.run_view import RunView, config_rows
from studio.samples import SampleFiles, chosen, sample_folders
from studio.votes import Vote, Votes

PAGE = Path(__file__).parent / "page"
_VIEWS = 4  # runs held in memory
_MOST_ROWS = 200
_MAX_BODY = 2**20  # bytes
_BODY_S = 30.0
_CONCURRENT = 16
_Text = Annotated[str, Query(max_length=1_000)]


class Studio:
    """The endpoints."""

    def __init__(self, folders: RunFolders, playground: Playground):
        self._folders, self._playground = folders, playground
        self._views: OrderedDict[Path, RunView] = OrderedDict()
        self._lock = threading.Lock()
        self._samples = SampleFiles()
        self._votes = Votes(folders.root)

    def runs(self) -> dict[str, Any]:
        """All runs, last written first."""
        found = []
        for run in self._folders.all():
            steps = last_step(run.folder)
            step = run.last.get("step")
            reward = run.last.get("reward/mean", run.last.get("eval/reward"))
            row = {"name": run.name, "state": state(run, steps), "step": step, "steps": steps}
            found.append({**row, "reward": reward, "written": run.written})
        return {"folder": str(self._folders.root), "runs": found}

    def curves(self, run: str, known: _Text = "", every: bool = False) -> Response:
        """The charts of a run; 204 if the version that is `known` is still the last."""
        found = self._view(run).curves(known, every)
        return Response(status_code=204) if found is None else JSONResponse(found)

    def curve(self, run: str, name: _Text) -> dict[str, Any]:
        """One curve of a run."""
        return self._view(run).curve(name) or {"name": name, "steps": [], "values": []}

    def names(self, run: str) -> list[str]:
        return self._view(run).names()

    def about(self, run: str) -> dict[str, Any]:
        """A run's state, its warnings, the outcomes of its groups, and the samples that it keeps."""
        folder = self._folders.folder(run)
        view = self._view(run)
        (summary,) = [one for one in self._folders.all() if one.folder == folder]
        steps = last_step(folder)
        return {
            "state": state(summary, steps),
            "written": summary.written,
            "step": summary.last.get("step"),
            "steps": steps,
            "warnings": view.warnings(),
            "ledger": view.ledger(),
            "samples": [name for _, name in sample_folders(folder)][:1_000],
        }

    def config(self, run: str, other: _Text = "") -> list[list[str | None]]:
        """The configuration of a run, beside another's."""
        beside = self._folders.folder(other) if other else None
        return config_rows(self._folders.folder(run), beside)

    def samples(
        self,
        run: str,
        name: str,
        expert: _Text = "",
        order: Literal["", "best", "worst"] = "",
        task: _Text = "",
        begin: Annotated[int, Query(ge=0)] = 0,
        most: Annotated[int, Query(ge=1, le=_MOST_ROWS)] = 24,
    ) -> dict[str, Any]:
        """Some rows of a folder of samples."""
        folder = self._folders.folder(run)
        if name not in [there for _, there in sample_folders(folder)]:
            raise NotThere(f"there are no samples {name[:100]!r}")
        inside = self._folders.inside(self._folders.relative(folder / "samples" / name))
        rows = self._samples.rows(inside)
        found = chosen(rows, expert, order, task)
        return {
            "folder": self._folders.relative(inside),
            "rows": found[begin : begin + most],
            "of": len(found),
            "tasks": sorted({row["task"] for row in rows}),
            "experts": list(dict.fromkeys(name for row in rows for name in row["scores"])),
        }

    def picture(self, path: str) -> FileResponse:
        """A picture inside a run."""
        file, kind = self._folders.picture(path)
        return FileResponse(file, media_type=kind, headers={"Cache-Control": "private, no-cache"})

    def comparable(self) -> list[dict[str, str]]:
        """What can be compared."""
        return comparable(self._folders)

    def compare(self, a: _Text, b: _Text) -> dict[str, Any]:
        """Two folders side by side."""
        return compare(self._folders, self._samples, a, b)

    def votes(self, a: _Text, b: _Text) -> dict[str, str]:
        """The last vote on every pair of two folders."""
        return self._votes.of(a, b)

    def vote(self, vote: Vote) -> dict[str, str]:
        """Keep a vote."""
        self._folders.inside(vote.a)
        self._folders.inside(vote.b)
        self._votes.add(vote)
        return {"status": "kept"}

    async def models(self) -> list[dict[str, Any]]:
        """The models that may be asked."""
        return await self._playground.models()

    async def draw(self, request: GenerateRequest) -> Response:
        """Have a model draw; a stream of its events."""
        return await self._playground.draw(request)

    def _view(self, run: str) -> RunView:
        folder = self._folders.folder(run)
        with self._lock:
            if folder not in self._views:
                self._views[folder] = RunView(folder)
            view = self._views[folder]
            self._views.move_to_end(folder)
            while len(self._views) > _VIEWS:
                self._views.popitem(last=False)
        return view


def build_page(folders: RunFolders, playground: Playground, digest: bytes | None = None) -> FastAPI:
    """The whole application. `digest`: SHA-256 of the token to ask for; None: only this machine has
    access."""
    studio = Studio(folders, playground)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await playground.close()

    app = FastAPI(
        title="bicot studio", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.add_middleware(LimitBody, max_bytes=_MAX_BODY, timeout_s=_BODY_S)
    app.add_middleware(LimitConcurrency, most=_CONCURRENT)
    app.add_middleware(
        Door, digest=digest, login=PAGE / "login.html"
    )  # added last, so that it comes first

    app.exception_handler(UserError)(_user_error)
    app.exception_handler(RequestValidationError)(_wrong_field)
    for path, endpoint in {
        "/api/runs": studio.runs,
        "/api/runs/{run}/curves": studio.curves,
        "/api/runs/{run}/curve": studio.curve,
        "/api/runs/{run}/names": studio.names,
        "/api/runs/{run}/about": studio.about,
        "/api/runs/{run}/config": studio.config,
        "/api/runs/{run}/samples/{name}": studio.samples,
        "/api/picture/{path:path}": studio.picture,
        "/api/comparable": studio.comparable,
        "/api/compare": studio.compare,
        "/api/votes": studio.votes,
        "/api/models": studio.models,
    }.items():
        app.get(path, response_model=None)(endpoint)
    app.post("/api/votes", response_model=None)(studio.vote)
    app.post("/api/draw", response_model=None)(studio.draw)
    app.get("/healthz")(_healthz)
    mimetypes.add_type("text/javascript", ".js")  # a system's own list may have another type
    app.mount("/static", StaticFiles(directory=PAGE))
    app.get("/", response_model=None)(_page)
    return app


def _healthz() -> dict[str, str]:
    return {"status": "alive"}


def _page() -> FileResponse:
    return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


async def _user_error(_: Request, error: Exception) -> Response:
    return detail(404 if isinstance(error, NotThere) else 400, str(error))


async def _wrong_field(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    return detail(422, f"{'.'.join(map(str, fault['loc'][1:]))}: {fault['msg']}")
