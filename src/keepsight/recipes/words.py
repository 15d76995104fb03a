"""A user's words into a config: nested settings, key=value texts and YAML, and one sentence for what is wrong with them."""

from __future__ import annotations

import difflib
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from keepsight.core import UserError

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], merged: Mapping[str, Any]) -> Model:
    """The config of nested settings.

    Raises:
        UserError: An unknown key (with the nearest spelling), or a wrong type or value.
    """
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        raise _explained(error, model) from error


def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, of which `over` replaces single values."""
    found = dict(base)
    for key, value in over.items():
        old = found.get(key)
        found[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return found


def nested(assignment: str) -> dict[str, Any]:
    """'a.b=value' as nested settings; raises UserError where it is not understood."""
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"{assignment!r} is not understood: settings are given as key=value, for example split.labels=40."
        )
    try:
        value = yaml.safe_load(text) if text else None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"The value of {assignment!r} is not valid YAML: quote it, or check its brackets.") from error
    *outer, last = key.strip().split(".")
    found: dict[str, Any] = {last: value}
    for name in reversed(outer):
        found = {name: found}
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings of a YAML file; raises UserError where it holds none."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The configuration file {path} cannot be read ({error.strerror}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, a number of 5,000 digits
        raise UserError(f"The configuration file {path} is not valid YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(found, dict):
        raise UserError(f"The configuration file {path} must hold 'key: value' lines, found {type(found).__name__}.")
    return found


def _model_at(root: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The config class that a validation error's location points into."""
    model = root
    for name in path:
        field = model.model_fields.get(str(name))
        if field is None:
            break
        for candidate in (field.annotation, *typing.get_args(field.annotation)):
            if (
                isinstance(candidate, type)
                and not isinstance(candidate, types.GenericAlias)
                and issubclass(candidate, BaseModel)
            ):
                model = candidate
    return model


_SHORT = reprlib.Repr()  # a value may be the product of nested YAML aliases, of any size
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def _explained(error: ValidationError, root: type[BaseModel]) -> UserError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        names = list(_model_at(root, first["loc"][:-1]).model_fields)
        close = difflib.get_close_matches(str(first["loc"][-1]), names, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names)}."
        return UserError(f"There is no setting {where!r}: {hint}")
    message = first["msg"].removeprefix("Value error, ")
    more = f" ({error.error_count() - 1} more like this)" if error.error_count() > 1 else ""
    return UserError(f"The setting {where}={_SHORT.repr(first['input'])} is wrong: {message}{more}.")
