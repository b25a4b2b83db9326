"""A running scan, looked at through the vendor's TCP interface (Nanonis SPM controllers)."""

import contextlib
import io
import socket
import struct
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from .follow import FrameFollower, NewLines, Started
from .recorder import Recorder, say

STATUS, BUFFER, FRAME = "Scan.StatusGet", "Scan.BufferGet", "Scan.FrameDataGrab"
COMMANDS = frozenset({STATUS, BUFFER, FRAME})  # all that is ever sent: each asks, none moves or changes anything
FORWARD = 1
TOPOGRAPHY = "Z"
MAX_BODY = 2**28  # bytes, of an answer


class NanonisError(RuntimeError):
    """What a controller answered in place of what it was asked for."""


class ProtocolError(ConnectionError):
    """An answer that no controller gives: nothing that comes over this connection can be trusted any more."""


class _Connection:
    """
    A socket as the vendor's client wants it.

    The client takes whatever one `recv` gives for a whole answer, and sets a timeout of a thousand seconds after the
    first one: here `recv` waits for all bytes, and the timeout stays.
    """

    def __init__(self, host: str, port: int, timeout: float):
        self.socket = socket.create_connection((host, port), timeout)

    def send(self, message: bytes) -> None:
        self.socket.sendall(message)

    def recv(self, size: int) -> bytes:
        if size > MAX_BODY:
            raise ProtocolError(f"an answer of {size} bytes: is this a Nanonis controller?")
        received = bytearray()
        while len(received) < size:
            more = self.socket.recv(min(size - len(received), 1 << 20))
            if not more:
                raise ConnectionResetError("the controller closed the connection")
            received += more
        return bytes(received)

    def settimeout(self, seconds: float) -> None:
        """Nothing: see above."""

    def close(self) -> None:
        self.socket.close()


class NanonisClient:
    """
    What can be asked of a controller without touching it.

    Args:
        host: of the controller's software.
        port: of its TCP interface, 6501 to 6504 as it is delivered.
        timeout: seconds to wait for any answer.

    Raises:
        ImportError: without the package `nanonis-spm`.
        OSError: if there is no connection.
    """

    def __init__(self, host: str, port: int, timeout: float = 10.0):
        try:
            from nanonis_spm import Nanonis  # an extra
        except ImportError as error:
            raise ImportError(
                "The vendor's client is missing; in Scanline's folder: pip install -e '.[live]'."
            ) from error
        self.connection = _Connection(host, port, timeout)
        self.client = Nanonis(self.connection)

    def close(self) -> None:
        """Ends the connection."""
        self.connection.close()

    def _ask(self, command: str, *numbers: int) -> "_Answer":
        assert command in COMMANDS
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it thinks of an answer
                body = self.client.send(command, list(numbers), ["I"] * len(numbers))
        except (ValueError, struct.error) as error:
            raise ProtocolError(f"{command}: no answer of a Nanonis controller ({error})") from error
        if not isinstance(body, bytes):
            raise ProtocolError(f"{command}: the answer was one to another question")
        return _Answer(command, body)

    def is_running(self) -> bool:
        """Whether a scan goes on."""
        answer = self._ask(STATUS)
        (status,) = answer.take("I")
        answer.check()
        return bool(status)

    def channels(self) -> list[int]:
        """Numbers of the channels that are recorded."""
        answer = self._ask(BUFFER)
        (number,) = answer.take("i")
        channels = list(answer.take("i" * answer.size_of(number)))
        answer.take("ii")  # pixels and lines: the frame tells
        answer.check()
        return channels

    def frame(self, channel: int) -> tuple[str, np.ndarray, bool]:
        """Name of a channel, its forward frame `[lines, pixels]`, and whether it is scanned upwards."""
        answer = self._ask(FRAME, channel, FORWARD)
        name = answer.take_text()
        rows, columns = answer.take("ii")
        heights = answer.take_floats(rows, columns)
        (upwards,) = answer.take("I")
        answer.check()
        return name, heights, bool(upwards)


class _Answer:
    """The body of an answer: big-endian numbers, and at its end what went wrong."""

    def __init__(self, command: str, body: bytes):
        self.command, self.body, self.place = command, body, 0

    def _bytes(self, size: int) -> bytes:
        if size < 0 or self.place + size > len(self.body):
            self._fail_with_text()
            raise ProtocolError(f"{self.command}: the answer breaks off after {len(self.body)} bytes")
        self.place += size
        return self.body[self.place - size : self.place]

    def _fail_with_text(self) -> None:
        """Raises `NanonisError` where there is nothing but an error in the body."""
        if len(self.body) >= 8:
            status, size = struct.unpack(">Ii", self.body[:8])
            if status and size == len(self.body) - 8:
                raise NanonisError(f"{self.command}: {self.body[8:].decode('utf-8', 'replace')}")

    def size_of(self, number: int) -> int:
        """A number of things that can be in the body; raises `ProtocolError` for one that cannot."""
        if not 0 <= number <= len(self.body):
            raise ProtocolError(f"{self.command}: a number of {number} in an answer of {len(self.body)} bytes")
        return number

    def take(self, kinds: str) -> tuple[Any, ...]:
        """The next numbers."""
        return struct.unpack(f">{kinds}", self._bytes(struct.calcsize(f">{kinds}")))

    def take_text(self) -> str:
        """The next text, after its size."""
        (size,) = self.take("i")
        return self._bytes(size).decode("utf-8", "replace")

    def take_floats(self, rows: int, columns: int) -> np.ndarray:
        """The next array of float32."""
        if min(rows, columns) < 0:
            raise ProtocolError(f"{self.command}: a frame of {rows} x {columns}")
        return np.frombuffer(self._bytes(4 * rows * columns), ">f4").astype(np.float32).reshape(rows, columns)

    def check(self) -> None:
        """Raises `NanonisError` if the controller says that something went wrong."""
        if len(self.body) - self.place >= 8:
            (status,) = self.take("I")
            text = self.take_text()
            if status or text:
                raise NanonisError(f"{self.command}: {text or f'error {status}'}")


def follow_scans(
    connect: Callable[[], NanonisClient],
    recorder: Recorder,
    folder: Path,
    interval: float = 0.5,
    channel: int | None = None,
    num_scans: int | None = None,
    patience: float | None = None,
    name_of: Callable[[], str] = lambda: datetime.now().strftime("nanonis_%Y%m%d_%H%M%S"),
) -> int:
    """
    Follows the scans of a controller, one after another.

    Lines that were measured while there was no connection come with the next look. A scan that a broken connection
    interrupts goes on where it was.

    Args:
        connect: to the controller; called again whenever the connection breaks.
        recorder: of the scans.
        folder: for its files.
        interval: seconds between two looks.
        channel: number of the channel; by default the recorded one whose name begins with Z.
        num_scans: to end after; `None` goes on for ever.
        patience: seconds without any answer after which to give up; `None` tries for ever.
        name_of: makes the name of a scan that begins.

    Returns:
        The number of scans that ended.

    Raises:
        OSError: after `patience`; also `NanonisError`, if that is what kept coming.
    """
    follower, client, answered, num_ended, told = FrameFollower(), None, time.monotonic(), 0, ""
    wanted = channel
    try:
        while num_scans is None or num_ended < num_scans:
            try:
                if client is None:
                    client = connect()
                if wanted is None:
                    wanted = _find_topography(client)
                # stopped before and after: then the frame is one of a scan that goes on no more
                running = client.is_running()
                name, frame, upwards = client.frame(wanted)
                if channel is None and not name.startswith(TOPOGRAPHY):  # numbers are of slots, which are filled anew
                    wanted = None
                    continue
                running |= client.is_running()
            except (OSError, NanonisError) as error:
                if isinstance(error, OSError) and client is not None:
                    client.close()
                    client = None
                if str(error) != told:  # once, not at every try
                    what = "no connection" if isinstance(error, OSError) else "the controller answers with an error"
                    say(f"{what}: {_reason(error)}; trying on")
                    told = str(error)
                if patience is not None and time.monotonic() - answered > patience:
                    raise
                time.sleep(interval)
                continue
            if told:
                say("the controller answers again")
                told = ""
            answered = time.monotonic()
            for event in follower.look(frame, running, upwards):
                if isinstance(event, Started):
                    recorder.start(_free_name(folder, name_of()), folder)
                elif isinstance(event, NewLines):
                    recorder.add(event.lines)
                else:
                    recorder.finish()
                    num_ended += 1
            time.sleep(interval)
    finally:
        recorder.close()
        if client is not None:
            client.close()
    return num_ended


def _reason(error: Exception) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error)


def _free_name(folder: Path, name: str) -> str:
    """`name`, with a number after it where there is such a scan already: two may begin within a second."""
    names = (name if number == 1 else f"{name}_{number}" for number in range(1, 10**6))
    return next(name for name in names if not any(folder.glob(f"{name}.tip.*")))


def _find_topography(client: NanonisClient) -> int:
    names = []
    for channel in client.channels():
        name = client.frame(channel)[0]
        if name.startswith(TOPOGRAPHY):
            return channel
        names.append(name)
    raise NanonisError(f"no recorded channel is the topography, only {', '.join(names) or 'none'}: give its number.")
