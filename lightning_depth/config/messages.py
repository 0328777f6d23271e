"""The heart of jsonargparse's error messages, which run to dozens of lines."""

import re
from collections.abc import Iterable

from lightning_depth.config.words import near
from lightning_depth.results import MOVED

# A line that `readable` made of an inner message, which jsonargparse then quotes in the outer one.
INNER = re.compile(r"^[\s-]*((?:Unknown (?:key|class) |[\w.]+: expected ).+)$", re.MULTILINE)
MISSING = r"(?s)(?=.*?Missing required keys: \{'([^']+)')(?=.*?Given value: ([^\n]{1,120}))"
# What jsonargparse says, what of it is said, and which group of the pattern may be a misspelt word (0: none).
PATTERNS = (
    (r"Unexpected keys: \{'([^']+)'", "Unknown key {1} in {key}.", 1),
    (MISSING, "{key}: expected a {1} in {2}.", 0),
    (r"module '([\w.]+)' has no attribute '(\w+)'", "Unknown class {1}.{2} for {key}.", 2),
    (r"given class_path '([^']+)':\s+(No module named '[\w.]+')", "Unknown class {1} for {key}: {2}.", 0),
    (r"Expected a dot import path string: (\S+)", "Unknown class {1} for {key}.", 1),
)
LONGEST = 120
RENAMED = {"held_out": "val"}  # values of earlier versions


def readable(message: str, known: Iterable[str] = ()) -> str:
    """One or two lines that say which key or class is wrong, and the word in `known` that was probably meant.

    jsonargparse nests messages: that of an argument stands inside that of its class. The innermost is the one to say.

    >>> readable("Option 'depht' is not accepted", ["depth"])
    'Unknown key depht. Did you mean depth?'
    """
    known = set(known)
    outer = re.search(r'Parser key "([^"]+)"', message)
    key = outer.group(1) if outer else ""
    if inside := INNER.search(message):
        heart = inside.group(1)
        return f"{key}.{heart}" if ": expected " in heart and key else heart
    if option := re.search(r"(?:Option|does not accept option|[Uu]nrecognized arguments:) '?([\w.+-]+)'?", message):
        group = re.search(r"Group '([\w.]+)' does not accept", message)
        word = f"{group.group(1)}.{option.group(1)}" if group else option.group(1)
        return _unknown_option(word, key, "arguments" in option.group(0), known)
    return _unknown_name(message, key, known) or _wrong_value(message, key) or _ends(message)


def _unknown_option(option: str, key: str, on_command_line: bool, known: set[str]) -> str:
    if on_command_line and not option.startswith("-"):
        return f"Unexpected word {option}: options begin with --."
    word = option.lstrip("-").rstrip("+")
    where = f" in {key}" if key else ""
    parts = word.split(".")
    if parts[-1] in MOVED:
        return f"Unknown key {word}{where}. It is goals.{MOVED[parts[-1]]} now."
    wrong = next((part for part in parts if part not in known), None)
    hint = near(wrong, known) if wrong else f" Other classes have a {parts[-1]}, this one has none."
    return f"Unknown key {word}{where}.{hint}"


def _unknown_name(message: str, key: str, known: set[str]) -> str | None:
    for pattern, text, misspelt in PATTERNS:
        if found := re.search(pattern, message):
            hint = near(found[misspelt], known) if misspelt else ""
            return text.format(found[0], *found.groups(), key=key) + hint
    return None


def _wrong_value(message: str, key: str) -> str | None:
    if not (given := re.search(r"(?:Given value|Got value): (.+)", message)):
        return None
    value = given.group(1) if len(given.group(1)) <= LONGEST else given.group(1)[:LONGEST] + "..."
    if base := re.search(r"(?:Not a valid|does not correspond to a) subclass of (\w+)", message):
        return f"{key}: expected a class_path that names a {base.group(1)}, not {value!r}."
    types = dict.fromkeys(re.findall(r"Expected (?:a|an) <class '(?:[\w.]+\.)?(\w+)'>", message))
    choices = dict.fromkeys(re.findall(r"'[^']*'", " ".join(re.findall(r"Expected a typing.Literal\[(.+)\]", message))))
    words = [*choices, *("null" if name == "NoneType" else name for name in types)]
    if words in ([], ["null"]):
        return None
    hint = f" {value} is called {RENAMED[value]} now." if value in RENAMED else ""
    return f"{key}: expected {' or '.join(words)}, not {value!r}.{hint}"


def _ends(message: str) -> str:
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return "\n".join(line[:300] for line in dict.fromkeys([lines[0], lines[-1]]))
