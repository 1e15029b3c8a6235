"""The server's addresses: the page, the JSON API beside it, and what is refused before any work.

A body is counted while it is read: one that is too large, too slow, or one too many ends there.
"""

import asyncio
import base64
import binascii
import concurrent.futures
import contextlib
import json
import os
import pathlib
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.convertors import PathConvertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from export.browse.page import SAMPLES, Pages
from export.browse.pictures import Folder, Missing, Thumbnails
from export.browse.queries import Away, Batches, Encode, NotFound, Overloaded, Query, Searcher
from export.index import Index
from export.results import name_finder
from hqc_tf.data import decoding
from hqc_tf.data.folder import LARGE_BYTES
from hqc_tf.data.pictures import spread
from hqc_tf.errors import UserError, printable

HERE = pathlib.Path(__file__).parent
MOST_K, USUAL_K = 1000, 24
# Bytes of all bodies that are held at a time, and of a body that is no image.
HELD_BYTES, JSON_BYTES = 256 * 2**20, 2**20
# Pictures that are made at a time, and that may wait for it.
MAKERS, MOST_PICTURES = 4, 256
# Connections that are open at a time; one more is answered 503.
MOST_CONNECTIONS = 512
CHUNK = 2**16
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class _AnyName(PathConvertor):
    """The rest of an address; a name may have a line break."""

    regex = r"[\s\S]*"


register_url_convertor("name", _AnyName())


class Limits(NamedTuple):
    """What a request may take."""

    body_bytes: int = 32 * 2**20
    seconds: float = 30.0


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    """A query in JSON."""

    id: str = ""
    embedding: str = ""
    k: int = USUAL_K
    within: str = ""
    explain: bool = False


class _Headers:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send):
        async def with_headers(message):
            if message["type"] == "http.response.start":
                own = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = [*message["headers"], *own]
            await send(message)

        await self._app(scope, receive, with_headers)


class _Api:
    """What the addresses do."""

    def __init__(self, index, searcher, folder, thumbnails, limits):
        self._index, self._folder, self._thumbnails = index, folder, thumbnails
        self._searcher, self._limits = searcher, limits
        self._held = self._pictures = 0
        self._makers = concurrent.futures.ThreadPoolExecutor(MAKERS)

    @contextlib.asynccontextmanager
    async def working(self, _) -> AsyncIterator[None]:
        """Runs the batches while the server does."""
        self._batches = Batches(self._searcher.answer)
        task = asyncio.create_task(self._batches.run())
        yield
        task.cancel()

    async def health(self, _: Request) -> Response:
        bits = self._index.manifest["bits"]
        return _json({"status": "ok", "images": self._index.num_images, "bits": bits})

    async def search(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        is_json = kind == "application/json"
        if not (is_json or kind.startswith("image/") or kind == "application/octet-stream"):
            text = f"content type {printable(kind) or 'missing'}: send application/json or image/*"
            raise HTTPException(415, text)
        most = JSON_BYTES if is_json else self._limits.body_bytes
        async with self._body(request, most) as body:
            asked = _parse(body) if is_json else _parse_address(request)
            query = self._query(asked, b"" if is_json else body, is_json)
            async with self._in_time(503, "no answer"):
                is_large = await asyncio.to_thread(_is_large, query.contents)
                answer = await self._batches.ask(query, is_large)
        content = {"ids": answer.ids, "distances": answer.distances}
        content["embedding"] = _to_text(answer.embedding)
        return _json(content | ({"books": answer.books} if asked.explain else {}))

    async def image(self, request: Request) -> Response:
        file, kind = await self._make(self._open, _name(request, "/api/image/"))

        def chunks():
            with file:
                while chunk := file.read(CHUNK):
                    yield chunk

        size = {"Content-Length": str(os.fstat(file.fileno()).st_size)}
        return StreamingResponse(chunks(), media_type=kind, headers=size)

    async def thumbnail(self, request: Request) -> Response:
        jpeg = await self._make(self._small, _name(request, "/api/thumbnail/"))
        keep = {"Cache-Control": "private, max-age=600"}
        return Response(jpeg, media_type="image/jpeg", headers=keep)

    def _open(self, name):
        self._searcher.row(name)
        return self._folder.open(name)

    def _small(self, name):
        self._searcher.row(name)
        return self._thumbnails.of(name)

    async def _make(self, make: Callable[[str], Any], name: str) -> Any:
        if self._pictures >= MOST_PICTURES:
            raise Overloaded
        self._pictures += 1
        try:
            async with self._in_time(503, "no picture"):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._makers, make, name)
        finally:
            self._pictures -= 1

    @contextlib.asynccontextmanager
    async def _in_time(self, status, what):
        try:
            async with asyncio.timeout(self._limits.seconds):
                yield
        except TimeoutError:
            text = f"{what} within {self._limits.seconds:g} seconds; try again, or send less"
            raise HTTPException(status, text, {"Connection": "close"}) from None

    @contextlib.asynccontextmanager
    async def _body(self, request, most):
        """The body of a request, of at most so many bytes; they count until the block ends."""
        body, held = bytearray(), 0
        try:
            async with self._in_time(408, "no complete request"):
                async for chunk in request.stream():
                    if self._held + len(chunk) > HELD_BYTES:
                        raise Overloaded
                    self._held += len(chunk)
                    held += len(chunk)
                    if held > most:
                        text = f"larger than {most / 2**20:g} MiB; send a smaller file"
                        raise HTTPException(413, text, {"Connection": "close"})
                    body += chunk
            body = bytes(body)
            yield body
        finally:
            self._held -= held

    def _query(self, asked, contents, is_json):
        if not 1 <= asked.k <= MOST_K:
            raise HTTPException(400, f"k is {asked.k}, but must be 1 to {MOST_K}; change it")
        if not (is_json or contents):
            raise HTTPException(400, "no image: the body is empty; send an image file")
        if sum(map(bool, (contents, asked.id, asked.embedding))) != 1:
            text = "give one of id and embedding, or send an image file without them"
            raise HTTPException(400, text)
        given = {"within": _normal(asked.within), "contents": contents, "id": _normal(asked.id)}
        embedding = self._embedding(asked.embedding) if asked.embedding else None
        return Query(asked.k, **given, embedding=embedding)

    def _embedding(self, text):
        num_books, _, word_dim = self._index.codebooks.shape
        try:
            values = np.frombuffer(base64.b64decode(text, b"-_", validate=True), "<f4")
        except (ValueError, binascii.Error):
            values = np.zeros(0)
        # Squares of larger numbers are no float32.
        if values.shape != (num_books * word_dim,) or not (np.abs(values) < 1e15).all():
            raise HTTPException(400, "embedding: not as an answer of this server has it")
        return values


def make_app(
    index: Index,
    encode: Encode | None,
    root: str | os.PathLike,
    cache: str | os.PathLike,
    cache_bytes: int = 2**28,
    limits: Limits = Limits(),  # noqa: B008
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "[::1]", "::1"),
    duplicates: str = "",
) -> ASGIApp:
    """The server as an ASGI application.

    Args:
        index: what is searched.
        encode: of the index's encoder; None where it encodes no images.
        root: folder of the images' files.
        cache: folder for thumbnails.
        cache_bytes: of thumbnails that are kept.
        limits: of a request.
        hosts: names under which the server answers, so that a page of others, whose name is made to
            lead here, is refused; "*": all.
        duplicates: what `export.duplicates` wrote; UserError where it is something else.
    """
    folder = Folder(root, name_finder(index.manifest.get("inputs", []), root))
    searcher = Searcher(index, encode)
    api = _Api(index, searcher, folder, Thumbnails(folder, cache, cache_bytes), limits)
    samples = searcher.ids_of(spread(index.num_images, SAMPLES)[None])[0]
    pages = Pages(index, samples, limits.body_bytes, encode is not None, duplicates)
    routes = [
        Route("/", pages.search),
        Route("/duplicates", pages.duplicates),
        Route("/api/search", api.search, methods=["POST"]),
        Route("/api/image/{id:name}", api.image),
        Route("/api/thumbnail/{id:name}", api.thumbnail),
        Route("/healthz", api.health),
        Route("/openapi.json", _describe),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]
    known = Middleware(TrustedHostMiddleware, allowed_hosts=[*hosts], www_redirect=False)
    errors = {
        HTTPException: _refuse,
        Overloaded: _overloaded,
        NotFound: _not_found,
        Missing: _not_found,
        Away: _away,
        UserError: _wrong,
        ClientDisconnect: _wrong,
        Exception: _failed,
    }
    made = Starlette(
        routes=routes, middleware=[known], exception_handlers=errors, lifespan=api.working
    )
    # Not as its middleware, which an answer of status 500 does not pass.
    return _Headers(made)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # In ASCII, for names that are not UTF-8.
    text = json.dumps(content, separators=(",", ":")).encode()
    return Response(text, status, headers, "application/json")


async def _describe(_):
    return Response((HERE / "openapi.json").read_bytes(), media_type="application/json")


async def _refuse(_, error):
    return _json({"error": error.detail}, error.status_code, error.headers)


async def _overloaded(*_):
    return _json({"error": "too many requests; try again"}, 503, {"Retry-After": "1"})


async def _away(_, error):
    return _json({"error": str(error)}, 503, {"Retry-After": "5"})


async def _not_found(_, error):
    return _json({"error": str(error)}, 404)


async def _wrong(_, error):
    return _json({"error": str(error) or "the request was cut short"}, 400)


async def _failed(*_):
    return _json({"error": "the server failed; its log says why"}, 500)


def _parse(body):
    try:
        # Not msgspec's decoder, which refuses names that are not UTF-8.
        return msgspec.convert(json.loads(body), _Asked)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f"not a query: {printable(error)}") from error


def _parse_address(request):
    text = request.scope["query_string"].decode("latin-1")
    try:
        pairs = urllib.parse.parse_qsl(text, True, errors="surrogateescape", max_num_fields=9)
        return msgspec.convert(dict(pairs), _Asked, strict=False)
    except ValueError as error:
        raise HTTPException(400, f"not a query: {printable(error)}") from error


def _name(request, before):
    raw = request.scope["raw_path"].partition(b"?")[0].removeprefix(before.encode())
    return os.fsdecode(urllib.parse.unquote_to_bytes(raw))


def _normal(name):
    """A name as the file system has it; a client may give bytes of a character by themselves."""
    try:
        return os.fsdecode(os.fsencode(name))
    except UnicodeEncodeError as error:
        raise HTTPException(400, "a name that no file can have") from error


def _is_large(contents):
    return len(contents) > LARGE_BYTES or decoding.grows(contents)


def _to_text(embedding):
    return base64.urlsafe_b64encode(embedding.astype("<f4").tobytes()).decode()
