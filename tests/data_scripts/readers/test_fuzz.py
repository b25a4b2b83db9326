import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz_readers as fuzzer
from data_scripts.readers import READERS


def test_whatever_is_in_a_file_it_is_a_scan_or_refused(tmp_path):
    for kind in fuzzer.FORMATS:
        make = fuzzer.Maker(kind, count=60, num_random=20, seed=1)
        tally = fuzzer.fuzz(make, tmp_path)
        assert not tally.failures
        assert tally.reads == tally.scans + tally.refusals == make.num_cases
        assert tally.refusals > 0 and (tally.scans > 0 or kind == fuzzer.RANDOM)


def test_same_seed_same_files():
    one, other, third = (fuzzer.Maker("sxm", 9, 9, seed) for seed in (0, 0, 1))
    assert [one(number) for number in range(9)] == [other(number) for number in range(9)]
    assert one(0) != third(0)


def _exit(*_):
    raise SystemExit(3)


def _die(*_):
    os._exit(3)


def _print(*_):
    os.write(2, b"something is wrong")
    raise ValueError("after printing")


def _allocate(*_):
    return np.ones((2**14, 2**14))


def _warn(*_):
    warnings.showwarning(UserWarning("strange"), UserWarning, "reader.py", 1)
    raise ValueError("after warning")


@pytest.mark.parametrize(
    ("reader", "found"),
    [
        (_exit, "SystemExit: 3"),
        (_die, "the process died (3)"),
        (_print, "printed b'something is wrong'"),
        (_allocate, "asked for more memory than there is"),
        (_warn, "warned: UserWarning: strange"),
        (lambda *_: time.sleep(60), "does not end within"),
    ],
)
def test_failures_are_found(reader, found, tmp_path, monkeypatch):
    monkeypatch.setitem(READERS, ".npy", reader)
    monkeypatch.setattr(fuzzer, "TIME_LIMIT", -0.5 if "end" in found else 5.0)
    make = fuzzer.Maker("npy", count=2, num_random=1, seed=0)
    tally = fuzzer.fuzz(make, tmp_path)
    assert tally.reads == 2 and len(tally.failures) == 2
    for number, failure in enumerate(tally.failures):
        assert failure["wrong"].startswith(found)
        assert Path(failure["path"]).read_bytes() == make(number).files["scan.npy"]
