"""
A Nanonis controller for the tests: the vendor's TCP protocol on loopback, replaying a scan.

    python tests/live/nanonis_controller.py PORT scan.npy SECONDS_PER_LINE

As a program it scans by itself, and can be killed; in a test, [`Controller`] scans as far as it is told.
"""

import contextlib
import socket
import struct
import sys
import threading
import time

import numpy as np

CHANNELS = {0: "Current (A)", 14: "Z (m)"}


class Controller:
    """
    Answers `Scan.StatusGet`, `Scan.BufferGet` and `Scan.FrameDataGrab` as the documentation of the protocol says, and
    anything else with an error.

    Attributes:
        frame: `[lines, pixels]`, row 0 on top; what is in it is up to the test.
        running, upwards: of the scan.
        asked: the names of all commands that came.
        error: text to answer with, in place of what was asked for.
        stall: seconds to wait before each answer.
    """

    def __init__(self, frame: np.ndarray, port: int = 0):
        self.frame, self.running, self.upwards = frame, False, False
        self.asked: list[str] = []
        self.error, self.stall = "", 0.0
        self.lock = threading.Lock()
        self.connections: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def break_connections(self) -> None:
        """As a controller that dies: whoever is connected gets a reset."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
        self.connections.clear()

    def close(self) -> None:
        self.listener.close()
        self.break_connections()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                header = self._receive(connection, 40)
                name = header[:32].rstrip(b"\0").decode()
                (size,) = struct.unpack(">i", header[32:36])
                body = self._receive(connection, size)
                self.asked.append(name)
                time.sleep(self.stall)
                answer = self._answer(name, body)
                # in pieces, as a network delivers them
                message = name.encode().ljust(32, b"\0") + struct.pack(">iHH", len(answer), 0, 0) + answer
                for start in range(0, len(message), 1000):
                    connection.sendall(message[start : start + 1000])

    @staticmethod
    def _receive(connection: socket.socket, size: int) -> bytes:
        received = b""
        while len(received) < size:
            more = connection.recv(size - len(received))
            if not more:
                raise OSError("closed")
            received += more
        return received

    def _answer(self, name: str, body: bytes) -> bytes:
        if self.error:
            return self._failed(self.error)
        good = struct.pack(">Ii", 0, 0)
        if name == "Scan.StatusGet":
            return struct.pack(">I", self.running) + good
        if name == "Scan.BufferGet":
            return struct.pack(f">{len(CHANNELS) + 3}i", len(CHANNELS), *CHANNELS, *self.frame.shape[::-1]) + good
        if name == "Scan.FrameDataGrab":
            channel, forward = struct.unpack(">II", body)
            if channel not in CHANNELS or forward != 1:
                return self._failed("Invalid channel index")
            title = CHANNELS[channel].encode()
            with self.lock:
                heights = self.frame if title.startswith(b"Z") else np.ones_like(self.frame)
                size = struct.pack(">ii", *heights.shape)
                return (
                    struct.pack(">i", len(title)) + title + size + heights.astype(">f4").tobytes()
                    + struct.pack(">I", self.upwards) + good
                )  # fmt: skip
        return self._failed(f"{name}: unknown")

    @staticmethod
    def _failed(text: str) -> bytes:
        return struct.pack(">Ii", 1, len(text)) + text.encode()


def main() -> None:
    """Scans a file over and over, from the top, with NaN where it has not come to yet."""
    port, path, seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    scan = np.load(path)
    start = int(sys.argv[4]) if len(sys.argv) > 4 else 0  # lines that were there when it was killed
    frame = np.full_like(scan, np.nan)
    frame[:start] = scan[:start]
    controller = Controller(frame, port)
    controller.running = True
    for line in range(start, len(scan)):
        time.sleep(seconds)
        controller.frame[line] = scan[line]
    time.sleep(seconds)
    controller.running = False
    time.sleep(60)


if __name__ == "__main__":
    main()
