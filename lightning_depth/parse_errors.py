"""The heart of jsonargparse's error messages, which run to dozens of lines."""

import difflib
import re
from collections.abc import Iterable


def readable(message: str, known: Iterable[str] = ()) -> str:
    """One or two lines that say which key or class is wrong, and the word in `known` that was probably meant.

    jsonargparse nests messages: that of an argument stands inside that of its class. The innermost is the one to say.

    >>> readable("Option 'depht' is not accepted", ["depth"])
    'Unknown key depht. Did you mean depth?'
    """
    outer = re.search(r'Parser key "([^"]+)"', message)
    key = outer.group(1) if outer else ""
    inside = re.search(r"^[\s-]*(?:Unknown (?:key|class)|[\w.]+: expected) .+$", message, re.MULTILINE)
    if inside:  # an inner message that came through here before
        heart = inside.group(0).strip(" -\n")
        return f"{key}.{heart}" if ": expected " in heart and key else heart
    option = re.search(r"(?:Option|does not accept option|[Uu]nrecognized arguments:) '?([\w.+-]+)'?", message)
    if option:
        word = option.group(1).lstrip("-")
        where = f" in {key}" if key else ""
        return f"Unknown key {word}{where}.{_near(word.split('.')[-1], known)}"
    types = dict.fromkeys(re.findall(r"Expected (?:a|an) <class '([\w.]+)'>", message))
    value = re.search(r"Given value: (.+)", message)
    if types.keys() - {"NoneType"} and value:
        expected = " or ".join("null" if name == "NoneType" else name for name in types)
        return f"{key}: expected {expected}, not {value.group(1)!r}."
    path = re.search(r"Expected a dot import path string: (\S+)", message)
    if path:
        return f"Unknown class {path.group(1)} for {key}.{_near(path.group(1), known)}"
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return "\n".join(line[:300] for line in dict.fromkeys([lines[0], lines[-1]]))


def _near(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, sorted(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""
