"""Words -> config: one function, without a process or a redirected stream, and fast enough for ten thousand cells."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader

from lightning_depth.config.parser import parser
from lightning_depth.config.words import SECTIONS, check, key_of, options, section_of
from lightning_depth.errors import UserError
from lightning_depth.results import flat


@dataclass(frozen=True)
class Config:
    """What a command is to do, every default written out.

    Attributes:
        command: `fit`, `validate`, `test` or `predict`.
        values: the whole config as plain values, but for how the command itself is called (a checkpoint, say).
        parsed: the same as jsonargparse made it, by section: from here objects are made.
        given: the dotted keys that files and words set, without `.init_args`; everything else is at its default.
        files: the config files, in order.
    """

    command: str
    values: dict[str, Any]
    parsed: Mapping[str, Namespace]
    given: frozenset[str]
    files: tuple[Path, ...]

    @property
    def seed(self) -> int:
        """The run's seed; 0 where `seed_everything` is false."""
        return int(self.values["seed_everything"])


def resolve(command: str, words: Sequence[str]) -> Config:
    """The config that `command` has from these words, such as `["--config", "a.yaml", "--model.depth", "18"]`.

    A pure function of the words and the files that they name. Sections that were resolved before are remembered, so
    the cells of a grid cost what differs between them: 5 to 20 ms on one core. Whatever is wrong is a `UserError`.
    """
    check(words)
    of_section: dict[str, list[str]] = {name: [] for name in SECTIONS}
    given: set[str] = set()
    files: list[Path] = []
    for first, *rest in options(words):
        if first == "--config":
            files.append(Path(rest[0]))
            for section, (text, keys) in _sections(files[-1].resolve(), files[-1].stat().st_mtime_ns).items():
                of_section[section] += ["--config", text]
                given |= keys
            if rest[1:]:
                raise UserError(f"Unexpected word {rest[1]}: options begin with --.")
        else:
            of_section[section_of(key_of(first))] += [first, *rest]
            given.add(first.removeprefix("--").split("=")[0].rstrip("+").replace(".init_args", ""))
    parsed, values = {}, {}
    for section, part in of_section.items():
        # A file that is named in a value is read anew, since it may have changed, or another be meant from elsewhere.
        parse = _parsed.__wrapped__ if any(re.search(r"\.(ya?ml|json)\b", word) for word in part) else _parsed
        found, text = parse(command, section, tuple(part))
        parsed[section] = found.clone()
        values.update(json.loads(text))
    if not 0 <= values["seed_everything"] < 2**32:
        raise UserError(f"seed_everything={values['seed_everything']}: a seed is a number from 0 to {2**32 - 1}.")
    keys_in_order = ("seed_everything", "trainer", "model", "data", "goals", "run")
    ordered = {key: values[key] for key in keys_in_order if key in values}
    return Config(command, ordered, parsed, frozenset(given), tuple(files))


@lru_cache(maxsize=1024)
def _sections(path: Path, modified: int) -> dict[str, tuple[str, frozenset[str]]]:
    """The sections of a file: each as YAML, with the dotted keys that it sets."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in get_loader("yaml")(path.read_text()).items():
        if isinstance(value, str) and key in ("trainer", "model", "data") and (path.parent / value).is_file():
            value = str((path.parent / value).resolve())  # a file named in a file is beside it
        sections.setdefault(section_of(key.rstrip("+")), {})[key] = value
    keys = {name: frozenset(key.replace(".init_args", "") for key, _ in flat(part)) for name, part in sections.items()}
    return {name: (yaml.safe_dump(part), keys[name]) for name, part in sections.items()}


@lru_cache(maxsize=4096)
def _parsed(command: str, section: str, words: tuple[str, ...]) -> tuple[Namespace, str]:
    """A section as jsonargparse parses it, and as JSON."""
    of_section = parser(command, section)
    parsed = of_section.parse_args(list(words))
    _spell_out(parsed)
    return parsed, of_section.dump(parsed, skip_none=False, skip_validation=True, format="json")


def _spell_out(tree: Any) -> None:
    """Put words in place of enums that are words: some of Lightning's callbacks have them as defaults."""
    items = vars(tree) if isinstance(tree, Namespace) else dict(enumerate(tree)) if isinstance(tree, list) else {}
    for key, value in items.items():
        if isinstance(value, Enum) and isinstance(value, str):
            vars(tree)[key] = str(value.value)
        _spell_out(value)
