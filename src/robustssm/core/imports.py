"""Functions of one's own, named `module:function` on the command line and in grids."""

import importlib
import sys
from typing import Any

from robustssm.core.errors import unknown, violation


def named(name: str, *, what: str) -> Any:
    """What `module:attribute` names, the module being installed or lying where the user is.

    Args:
        name: E.g. "my_net:build".
        what: How it is called in errors, e.g. "The recipe".

    Raises:
        ValueError: If it is not of that form, or there is no such module or attribute.
        ImportError: If the module itself cannot import something.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise ValueError(
            violation(what, "be given as MODULE:FUNCTION", f"'{name}'", "E.g. my_net:build.")
        )
    if "" not in sys.path:
        sys.path.insert(0, "")  # modules beside the user, as `python -m` has them
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"{what} must be importable; got '{name}': {error}. "
            "Run from the directory that holds the module, or install it."
        ) from None
    if not hasattr(module, attribute):
        raise ValueError(unknown(f"function of {module_name}", attribute, vars(module)))
    return getattr(module, attribute)
