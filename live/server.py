"""Tip states over HTTP, for programs in any language: post lines, get records."""

import contextlib
import json
import re
import socket
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from modeling_scanline.streaming_scanline import ScanlineStreamer

from .recorder import Recorder, say
from .records import RECORDS_SUFFIX

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Limits:
    """
    What a server takes.

    Attributes:
        scans: that are open at once.
        idle_s: seconds without a line after which a scan is closed, by whatever is asked for next.
        width: pixels of a line.
        lines: in one request, and records that are kept of a scan.
        body: bytes of a request.
    """

    scans: int = 16
    idle_s: float = 3600.0
    width: int = 16384
    lines: int = 8192
    body: int = 2**26


@dataclass
class _Session:
    recorder: Recorder
    used: float
    lock: threading.Lock = field(default_factory=threading.Lock)


class ScanSessions:
    """
    Scans by their numbers, each with a streamer of its own.

    Args:
        new_streamer: makes one.
        folder: for records and pictures.
        limits: see [`Limits`].
    """

    def __init__(self, new_streamer: Callable[[], ScanlineStreamer], folder: Path, limits: Limits):
        self.new_streamer, self.folder, self.limits = new_streamer, folder, limits
        self.sessions: dict[str, _Session] = {}
        self.lock = threading.Lock()

    def open(self, name: str | None) -> str:
        """
        Begins a scan.

        Raises:
            ValueError: for a name that is none, or that a scan has or had.
            OverflowError: if as many scans are open as may be.
            OSError: if the folder cannot be written to.
        """
        if name is not None and not NAME.fullmatch(name):
            raise ValueError("name must be letters, digits, dots, dashes and underscores, at most 100 of them.")
        scan = uuid.uuid4().hex
        self._close_idle()
        with self.lock:
            if len(self.sessions) >= self.limits.scans:
                raise OverflowError(f"{len(self.sessions)} scans are open, which is all there may be: end one.")
            if name is not None and any(each.recorder.name == name for each in self.sessions.values()):
                raise ValueError(f"a scan of the name {name} is open.")
            if name is not None and (self.folder / f"{name}{RECORDS_SUFFIX}").exists():
                raise ValueError(f"there are records of a scan {name} in {self.folder}: choose another name.")
            recorder = Recorder(self.new_streamer(), show=False)
            recorder.start(name or f"scan_{scan[:12]}", self.folder)
            self.sessions[scan] = _Session(recorder, time.monotonic())
        return scan

    def _close_idle(self) -> None:
        """Ends scans that have had no line for long. Nobody waits for those whose lines are being worked on."""
        now, idle = time.monotonic(), []
        with self.lock:
            for scan, session in list(self.sessions.items()):
                if now - session.used > self.limits.idle_s and not session.lock.locked():
                    idle.append(self.sessions.pop(scan))
        for session in idle:
            with session.lock:
                name = session.recorder.name
                try:
                    session.recorder.finish()
                except OSError as error:  # of no concern to the one who asks for something else
                    say(f"{name}: {error}")

    def _session(self, scan: str) -> _Session:
        try:
            return self.sessions[scan]
        except KeyError:
            raise KeyError(f"no scan {scan} is open.") from None

    def add(self, scan: str, lines: Any) -> list[dict[str, Any]]:
        """
        Takes lines `[num_lines, width]`, `None` where nothing was measured; their records.

        Raises:
            KeyError: if there is no such scan.
            ValueError: for anything else than lines, another width than before, or too many of them.
            OSError: if their records cannot be written, which ends the scan.
        """
        self._close_idle()
        session = self._session(scan)
        heights = to_heights(lines, self.limits)
        with session.lock:
            self._session(scan)  # it may have ended while lines before these were worked on
            try:
                if len(session.recorder.records) + len(heights) > self.limits.lines:
                    raise ValueError(f"a scan may have {self.limits.lines} lines: end this one, and begin another.")
                width = session.recorder.streamer.resampler.width
                if width not in (None, heights.shape[1]):
                    raise ValueError(
                        f"a scan has lines of one width, this one lines of {width} pixels, got {heights.shape[1]}: "
                        "begin another scan for them."
                    )
                return session.recorder.add(heights)
            except OSError as error:  # some of the lines have been taken, and nobody could say which
                self.sessions.pop(scan, None)
                with contextlib.suppress(OSError):
                    session.recorder.finish()
                raise OSError(f"{error}. This scan has ended with it: begin another.") from error
            finally:
                session.used = time.monotonic()  # the time that they took is not one without lines

    def records(self, scan: str) -> list[dict[str, Any]]:
        """All records of a scan; raises `KeyError` if there is none."""
        self._close_idle()
        return list(self._session(scan).recorder.records)

    def end(self, scan: str) -> dict[str, Any]:
        """Ends a scan; what was said last. Raises `KeyError` if there is none, `OSError` without room for it."""
        self._close_idle()
        with self.lock:
            session = self._session(scan)
            del self.sessions[scan]
        with session.lock:
            records = session.recorder.records
            session.recorder.finish()
        return {"lines": len(records), "last": records[-1] if records else None}

    def end_all(self) -> None:
        """Ends all scans."""
        for scan in list(self.sessions):
            try:
                self.end(scan)
            except KeyError:  # closed meanwhile
                continue
            except OSError as error:  # the others are ended nevertheless
                say(f"{scan}: {error}")


def to_heights(lines: Any, limits: Limits) -> np.ndarray:
    """Lines as JSON has them, `[num_lines, width]` in float32; raises `ValueError` for anything else."""
    if not isinstance(lines, list) or not lines or not all(isinstance(line, list) for line in lines):
        raise ValueError('lines must be a list of lines, each a list of numbers, as {"lines": [[0.1, null, 0.3]]}.')
    widths = {len(line) for line in lines}
    if len(widths) > 1 or 0 in widths:
        raise ValueError(f"lines must be of one width, and none empty, got {sorted(widths)[:5]}.")
    if max(widths) > limits.width or len(lines) > limits.lines:
        raise ValueError(
            f"a request may have {limits.lines} lines of {limits.width} pixels, got {len(lines)} of {max(widths)}."
        )
    try:
        # texts and truth values, too, would become numbers
        if not set(map(type, chain.from_iterable(lines))) <= {float, int, type(None)}:
            raise TypeError
        with np.errstate(over="ignore"):
            heights = np.array(lines, dtype=np.float64).astype(np.float32)
    except (TypeError, OverflowError):
        raise ValueError("a line may hold numbers, and null where nothing was measured; nothing else.") from None
    heights[np.isinf(heights)] = np.nan
    return heights


def make_app(sessions: ScanSessions, about: dict[str, Any]) -> Any:
    """
    The HTTP side of it.

    Args:
        sessions: the scans.
        about: what `GET /` says of the model.

    Returns:
        A FastAPI application; its own description is at `/docs`.

    Raises:
        ImportError: without FastAPI.
    """
    from fastapi import FastAPI, HTTPException, Request  # an extra
    from fastapi.concurrency import run_in_threadpool
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from fastapi.responses import PlainTextResponse
    from starlette.requests import ClientDisconnect

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(sessions.end_all)  # also where a signal ends the process right after

    app = FastAPI(
        title="Scanline",
        description="The state of the tip, line by line. It advises, and moves nothing.",
        lifespan=lifespan,
    )
    # or a web page could reach it through a name of its own
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    statuses = {KeyError: 404, OverflowError: 429, ValueError: 422, OSError: 507}

    async def body_of(request: Request) -> dict[str, Any]:
        # a browser names the page that asks; what else asks, names none
        if request.headers.get("origin") not in (None, f"http://{request.headers['host']}"):
            raise HTTPException(403, "pages of other places may not post here.")
        received = bytearray()
        try:
            async for part in request.stream():
                received += part
                if len(received) > sessions.limits.body:
                    raise HTTPException(413, f"a request may have {sessions.limits.body} bytes.")
        except ClientDisconnect:  # nobody is there to hear it
            raise HTTPException(400, "the request ends early.") from None
        try:
            body = json.loads(received) if received else {}
        except (ValueError, RecursionError):
            raise HTTPException(400, "the request is no JSON.") from None
        if not isinstance(body, dict):
            raise HTTPException(400, "the request must be a JSON object.")
        return body

    async def answered(function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await run_in_threadpool(function, *arguments)
        except tuple(statuses) as error:
            status = next(status for kind, status in statuses.items() if isinstance(error, kind))
            # a KeyError's text is in quotes
            raise HTTPException(status, str(error.args[0] if isinstance(error, KeyError) else error)) from None

    @app.get("/")
    def describe() -> dict[str, Any]:
        """The model, its states, and how much may be asked of this server."""
        return {**about, "limits": vars(sessions.limits), "open_scans": len(sessions.sessions)}

    @app.post("/scans", status_code=201)
    async def begin(request: Request) -> dict[str, Any]:
        """Begins a scan: `{"name": "optional"}` to `{"scan": "its number"}`."""
        name = (await body_of(request)).get("name")
        if name is not None and not isinstance(name, str):
            raise HTTPException(422, "name must be a text.")
        return {"scan": await answered(sessions.open, name)}

    @app.post("/scans/{scan}/lines")
    async def add(scan: str, request: Request) -> dict[str, Any]:
        """Takes the next lines, `{"lines": [[0.1, null, 0.3]]}`, all of one width; their records."""
        lines = (await body_of(request)).get("lines")
        return {"records": await answered(sessions.add, scan, lines)}

    @app.get("/scans/{scan}/records", response_class=PlainTextResponse)
    async def records(scan: str) -> str:
        """All records of a scan, a line of JSON each."""
        return "".join(json.dumps(record) + "\n" for record in await answered(sessions.records, scan))

    @app.delete("/scans/{scan}")
    async def end(scan: str) -> dict[str, Any]:
        """Ends a scan, and draws its picture."""
        return await answered(sessions.end, scan)

    return app


def serve(sessions: ScanSessions, about: dict[str, Any], port: int, ready: Callable[[], None]) -> None:
    """
    Serves on loopback until it is stopped.

    Args:
        sessions: the scans.
        about: what `GET /` says of the model.
        port: on 127.0.0.1.
        ready: called when nothing more stands in the way.

    Raises:
        OSError: if the port is taken.
        ImportError: without FastAPI.
    """
    try:
        import uvicorn  # an extra

        app = make_app(sessions, about)
    except ImportError as error:
        raise ImportError(f"{error}: in Scanline's folder: pip install -e '.[live]'") from error
    try:
        socket.create_server(("127.0.0.1", port)).close()  # uvicorn does not raise if it cannot, it exits
        ready()
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
    finally:
        sessions.end_all()
