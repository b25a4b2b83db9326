"""
Tells the state of the tip line by line, beside a running scan.

    python run_streaming.py replay scan.sxm                  # files, any that data_scripts reads
    python run_streaming.py watch path/to/session            # files, while the microscope writes them
    python run_streaming.py nanonis 192.168.1.10:6501        # a running scan, through the vendor's TCP interface
    python run_streaming.py serve                            # lines over HTTP, for any other program

Of each scan NAME it writes NAME.tip.jsonl, a line of JSON for each line of the scan as it comes (state, probabilities,
decision, tip change, whether the scan is like those of training), and in the end NAME.tip.png, the scan beside them.
It advises, and moves nothing; conditioning the tip stays with the operator.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from textwrap import shorten

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from data_scripts import ScanReadError, read_scan
from data_scripts.readers import DRAWN
from data_scripts.threads import one_thread
from experiments.run_folder import check_model
from live.nanonis import NanonisClient, NanonisError, follow_scans
from live.recorder import Recorder, say
from live.server import Limits, ScanSessions, serve
from live.watch import FolderWatcher
from modeling_scanline.streaming_scanline import ScanlineStreamer

RELEASED = Path(__file__).parent / "model_cards" / "scanline-causal-hsi100"
HERE = Path("tip_states")
NANONIS_PORT = 6501


def new_streamer(arguments: argparse.Namespace) -> ScanlineStreamer:
    """The streamer that the command line asks for; raises `ValueError` also where the model's files are broken."""
    check_model(str(arguments.model))
    try:
        return ScanlineStreamer.from_pretrained(arguments.model, alpha=arguments.alpha)
    except (RuntimeError, StrictDataclassError, SafetensorError) as error:  # of anything else a traceback says more
        cause = error.__cause__ if isinstance(error, StrictDataclassError) and error.__cause__ else error
        reason = shorten(str(cause), 200, placeholder="...") or type(cause).__name__
        raise ValueError(
            f"{arguments.model}: its weights or its configuration are broken ({reason}). Get the whole of it again."
        ) from error


def run_replay(arguments: argparse.Namespace) -> int:
    """Goes through files line by line, at once or in the time that the scan took."""
    if arguments.output_dir is not None:
        of_name: dict[str, Path] = {}
        for path in arguments.files:
            if of_name.setdefault(path.name, path) != path:
                raise ValueError(
                    f"{of_name[path.name]} and {path} have one name, and would have the same records in "
                    f"{arguments.output_dir}: choose another --output_dir for each, or none."
                )
    recorder = Recorder(new_streamer(arguments))
    unread = unwritten = 0
    try:
        for path in arguments.files:
            if path.name.endswith(DRAWN):  # *.png finds those of an earlier run, too
                continue
            try:
                scan = read_scan(path, channel=arguments.channel, direction=arguments.direction)
            except ScanReadError as error:
                say(str(error))
                unread += 1
                continue
            try:
                recorder.start(path.name, arguments.output_dir or path.parent)
                for line in scan.lines:
                    time.sleep(arguments.seconds_per_line)
                    recorder.add([line])
                recorder.finish()
            except OSError as error:  # as of a full disk: the next scan may have room
                say(f"{path}: {error}")
                unwritten += 1
    finally:
        recorder.close()
    for number, what in ((unread, "read"), (unwritten, "recorded")):
        if number:
            say(f"{number} of {len(arguments.files)} files could not be {what}.")
    return 2 if unread or unwritten else 0


def run_watch(arguments: argparse.Namespace) -> int:
    """Follows the scans in a folder while the microscope writes them, growing files included."""

    def read(path: Path):
        return read_scan(path, channel=arguments.channel, direction=arguments.direction).lines

    recorder = Recorder(new_streamer(arguments))
    watcher = FolderWatcher(
        arguments.folder, recorder, arguments.settle, arguments.output_dir, read, arguments.existing
    )
    say(f"Watching {arguments.folder}; Ctrl-C ends.")
    try:
        watcher.run(arguments.interval, arguments.scans)
    finally:
        recorder.close()
    return 2 if watcher.num_failed else 0


def run_nanonis(arguments: argparse.Namespace) -> int:
    """Follows the running scan of a Nanonis controller. No command that it sends moves or sets anything."""
    host, port = arguments.address
    connect = partial(NanonisClient, host, port, arguments.timeout)
    recorder = Recorder(new_streamer(arguments))
    say(f"Following {host}:{port}; Ctrl-C ends.")
    follow_scans(
        connect,
        recorder,
        arguments.output_dir or HERE,
        arguments.interval,
        arguments.channel_number,
        arguments.scans,
        arguments.patience,
    )
    return 0


def run_serve(arguments: argparse.Namespace) -> int:
    """Serves on loopback: POST /scans, POST /scans/SCAN/lines, DELETE /scans/SCAN; GET /docs explains them."""
    first = new_streamer(arguments)

    def another() -> ScanlineStreamer:
        return ScanlineStreamer(first.model, first.processor, alpha=arguments.alpha)

    limits = Limits(scans=arguments.max_scans, idle_s=arguments.idle)
    about = {"model": str(arguments.model), "labels": first.labels, "alpha": arguments.alpha}
    told = f"Serving at http://127.0.0.1:{arguments.port}, described at /docs; Ctrl-C ends."
    sessions = ScanSessions(another, arguments.output_dir or HERE, limits)
    serve(sessions, about, arguments.port, ready=lambda: say(told))
    return 0


def port_number(text: str) -> int:
    """Raises `ArgumentTypeError` for what is none."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 65536):
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, got {text!r}")
    return int(text)


def host_and_port(text: str) -> tuple[str, int]:
    """Of `HOST`, `HOST:PORT` or `[IPv6]:PORT`; raises `ArgumentTypeError` for what is none."""
    if text.startswith("[") or text.count(":") > 1:
        host, _, rest = text.removeprefix("[").partition("]")
        port = rest.removeprefix(":") if text.startswith("[") else ""
    else:
        host, _, port = text.partition(":")
    return host, port_number(port) if port else NANONIS_PORT


def seconds(text: str) -> float:
    """Raises `ArgumentTypeError` for what is none."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return value


def parser() -> argparse.ArgumentParser:
    """The command line."""
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--model", default=str(RELEASED), help="folder or Hub repository (the released model)")
    every.add_argument(
        "--alpha", type=float, help="decide on a state as soon as the evidence allows this error; by default never"
    )
    every.add_argument("--output_dir", type=Path, help=f"folder to write to; by default beside the file, else {HERE}")
    of_files = argparse.ArgumentParser(add_help=False)
    of_files.add_argument("--channel", help="of microscope files; by default the topography")
    of_files.add_argument("--direction", default="forward", help="forward or backward, with /up or /down (forward)")
    of_looks = argparse.ArgumentParser(add_help=False)
    of_looks.add_argument("--interval", type=seconds, default=0.5, help="seconds between two looks (0.5)")
    of_looks.add_argument("--scans", type=int, help="end after so many scans; by default go on")

    main_parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = main_parser.add_subparsers(dest="command", required=True)

    def command(name: str, function, of: Sequence[argparse.ArgumentParser]) -> argparse.ArgumentParser:
        about = (function.__doc__ or "").strip()
        added = commands.add_parser(name, parents=[*of, every], help=about, description=about)
        added.set_defaults(run=function)
        return added

    replay = command("replay", run_replay, [of_files])
    replay.add_argument("files", nargs="+", type=Path, help="scans: .sxm, .Z_mtrx, .gwy, .sm4, .dat, .png, .npy ...")
    replay.add_argument("--seconds_per_line", type=seconds, default=0.0, help="time that a line takes (0)")
    watch = command("watch", run_watch, [of_files, of_looks])
    watch.add_argument("folder", type=Path, help="with all folders below it")
    watch.add_argument("--settle", type=seconds, default=5.0, help="seconds without a change that end a file (5)")
    watch.add_argument("--existing", action="store_true", help="go through the files that are there already, too")
    nanonis = command("nanonis", run_nanonis, [of_looks])
    nanonis.add_argument(
        "address", type=host_and_port, metavar="HOST:PORT", help=f"of the controller; port {NANONIS_PORT} by default"
    )
    nanonis.add_argument("--channel_number", type=int, help="by default the recorded one whose name begins with Z")
    nanonis.add_argument("--timeout", type=seconds, default=10.0, help="seconds to wait for an answer (10)")
    nanonis.add_argument(
        "--patience", type=seconds, help="seconds without an answer to give up after; by default never"
    )
    serve_ = command("serve", run_serve, [])
    serve_.add_argument("--port", type=port_number, default=8642, help="on loopback (8642)")
    serve_.add_argument("--max_scans", type=int, default=Limits.scans, help=f"open at once ({Limits.scans})")
    serve_.add_argument(
        "--idle", type=seconds, default=Limits.idle_s, help=f"seconds after which a scan is closed ({Limits.idle_s:g})"
    )
    return main_parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        with one_thread():
            return arguments.run(arguments)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, ImportError, NanonisError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"run_streaming.py: error: {' '.join(lines[:2])}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
