"""Plug-ins: your own payment provider or mailer, which a setting names as "module:factory".

The factory takes the Settings and returns an async context manager. What that gives is the plug-in.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from flashsale.settings import Settings, SettingsError, variable


def make(settings: Settings, name: str) -> AbstractAsyncContextManager[Any]:
    """What the factory in this setting returns. Errors: SettingsError, which says what to do."""
    given = getattr(settings, name)
    module_name, _, factory_name = given.partition(":")
    factory = getattr(_module(name, module_name), factory_name, None)
    if not callable(factory):
        raise SettingsError(
            f"{variable(name)}: the module {module_name!r} has no function {factory_name!r}"
        )
    made = factory(settings)
    if not (hasattr(made, "__aenter__") and hasattr(made, "__aexit__")):
        raise SettingsError(
            f"{variable(name)}: {given} returns {type(made).__name__}, which is no async context "
            "manager: give it __aenter__ and __aexit__, or write the factory as an async generator "
            "under @contextlib.asynccontextmanager"
        )
    return made  # type: ignore[no-any-return]


@asynccontextmanager
async def plugged(settings: Settings, name: str, interface: Any) -> AsyncIterator[Any]:
    """The plug-in in this setting, for as long as it is used.

    interface: the Protocol whose methods it must have. Errors: SettingsError.
    """
    async with make(settings, name) as plug:
        wanted = [method for method in vars(interface) if not method.startswith("_")]
        missing = [method for method in wanted if not callable(getattr(plug, method, None))]
        if missing:
            raise SettingsError(
                f"{variable(name)}: {getattr(settings, name)} gives {type(plug).__name__}, which "
                f"lacks the method {', '.join(missing)} of {interface.__name__}"
            )
        yield plug


async def try_out(settings: Settings, name: str, interface: Any) -> None:
    """Begins and ends the plug-in in this setting. Errors: those of plugged."""
    async with plugged(settings, name, interface):
        pass


def _module(name: str, module_name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        missing = getattr(error, "name", None) or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            hint = "install its package, or put its folder into PYTHONPATH"
        else:
            hint = "install what it imports"
        raise SettingsError(
            f"{variable(name)}: can't import {module_name!r} ({error}): {hint}"
        ) from error
