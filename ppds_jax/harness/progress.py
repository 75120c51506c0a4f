"""Progress on a terminal: nothing for the first two seconds, nothing elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A bar that counts to `total`; yields the function that advances it.

    It goes to standard error, and is silent where that is not a terminal.
    """
    with tqdm(total=total, desc=label, delay=2, disable=None, leave=False) as bar:

        def advance(steps: int) -> None:
            bar.update(steps)

        yield advance
