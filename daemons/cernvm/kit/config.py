# SPDX-License-Identifier: BSD-3-Clause
"""Configuration files: one configspec per daemon is schema, defaults and documentation at once.

The only import of configobj.  Values are read once at start (and at a reload) into an immutable `Settings`;
thread-safe after that.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configobj import ConfigObj, ConfigObjError, Section, flatten_errors, get_extra_values
from validate import Validator

from .errors import UserMistake


@dataclass(frozen=True)
class Settings:
    """A validated configuration: section -> key -> value, typed by the configspec (sections may nest)."""

    path: Path
    values: Mapping[str, Mapping[str, Any]]
    given: frozenset[tuple[str, ...]]
    """The keys that the file sets, as (section, ..., key); all others have their defaults."""

    def __getitem__(self, section: str) -> Mapping[str, Any]:
        """Return the keys of `section`.  Raises KeyError for a section that the configspec does not have."""
        return self.values[section]

    def mistake(self, section: str, key: str, complaint: str) -> UserMistake:
        """Return (not raise) the error that names this file, `section` and `key`, for values only a daemon judges."""
        return UserMistake(f"{self.path}: [{section}] {key}: {complaint}")

    def lines(self) -> Iterator[str]:
        """Yield the effective configuration, each value with where it came from."""
        yield from _lines(self.values, (), self)


def load(spec: str, path: Path, *, required: bool) -> Settings:
    """Read the file `path` against the configspec `spec` (its text).

    Without `required` an absent file means all defaults.  Raises UserMistake naming file, section and key (or the
    line, where the file cannot be parsed).
    """
    if not path.exists() and required:
        raise UserMistake(f"{path}: no such configuration file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        config = ConfigObj(lines, configspec=spec.splitlines(), interpolation=False)
    except UnicodeDecodeError as error:
        raise UserMistake(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise UserMistake(f"{path}: cannot be read: {error.strerror}") from error
    except ConfigObjError as error:
        first = error.errors[0] if getattr(error, "errors", None) else error
        where = f", line {first.line_number}" if first.line_number else ""
        raise UserMistake(f"{path}{where}: neither a [section] nor a 'key = value' line") from error
    result = config.validate(Validator(), preserve_errors=True)
    given = frozenset(_keys(config, ()))
    _refuse_unknown(config, path)
    for sections, key, complaint in flatten_errors(config, result):
        place = f"[{' / '.join(sections)}] {key or ''}".rstrip()
        raise UserMistake(f"{path}: {place}: {_plain(complaint)}")
    return Settings(path, _in_order(config.dict(), config.configspec), given)


def _in_order(values: dict[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` in the order in which the configspec names them, which is the order for a reader."""
    names = [*(name for name in spec if name in values), *(name for name in values if name not in spec)]
    return {
        name: _in_order(values[name], spec.get(name, spec.get("__many__", {})))
        if isinstance(values[name], dict)
        else values[name]
        for name in names
    }


def _plain(complaint: object) -> str:
    return str(complaint).rstrip(".") if complaint else "missing"


def _refuse_unknown(config: ConfigObj, path: Path) -> None:
    """Raise for the first key or section that the configspec does not know (of a validated `config`)."""
    for sections, name in get_extra_values(config):
        known: Any = config.configspec
        for section in sections:
            known = known.get(section, known.get("__many__", {}))
        near = difflib.get_close_matches(name, [str(n) for n in known], n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        if sections:
            raise UserMistake(f"{path}: [{' / '.join(sections)}] {name}: unknown key{hint}")
        kind = "section" if isinstance(config[name], Section) else "key outside of any section"
        raise UserMistake(f"{path}: {name}: unknown {kind}{hint}")


def _keys(section: Section, prefix: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name in section.scalars:
        if name not in section.defaults:
            yield (*prefix, name)
    for name in section.sections:
        yield from _keys(section[name], (*prefix, name))


def _lines(values: Mapping[str, Any], prefix: tuple[str, ...], settings: Settings) -> Iterator[str]:
    depth = len(prefix)
    scalars = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    for key, value in scalars.items():
        origin = settings.path if (*prefix, key) in settings.given else "default"
        shown = ", ".join(map(str, value)) + ("," if len(value) < 2 else "") if isinstance(value, list) else value
        yield f"{key} = {'' if shown is None else shown}  # {origin}"
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield f"{'[' * (depth + 1)}{key}{']' * (depth + 1)}"
            yield from _lines(value, (*prefix, key), settings)
