"""How many threads numerical libraries use for our small matrices."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import cache

from threadpoolctl import ThreadpoolController


@cache
def _controller() -> ThreadpoolController:
    # Looks through the loaded libraries once; numpy and scipy are among them by the time of the first call.
    import numpy as np
    import scipy.linalg  # noqa: F401

    np.ones(2) @ np.ones(2)
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """Within it, linear algebra uses one thread: for matrices of a few hundred rows more threads only wait."""
    return _controller().limit(limits=1, user_api="blas")
