"""How many threads a line, or one of several processes, is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """
    One thread for torch and numpy, and afterwards as many as before.

    For a line, threads cost more than they bring; and the microscope's own programs want the other cores. Of several
    processes, each has a core: 16 with as many threads each made 150 simulated scans a second on as many cores, with
    one thread each 1,900.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
