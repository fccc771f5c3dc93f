"""Documents written by others: YAML and JSON that is read as plain data, within limits.

A configuration or a checkpoint's record may come from a stranger. Here it becomes text, numbers, true, false, null, lists and
mappings, and nothing else. Anything else in it, or more than a limit, raises a `UsageError` whose message is one line.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any

from ebmcore.errors import UsageError

MAX_DEPTH = 64  # lists and mappings within each other; a configuration has 4
MAX_ITEMS = 1000  # of a list or mapping in YAML; jsonargparse takes time quadratic in it
MAX_YAML = 2**15  # bytes; a configuration has 2 KiB, and PyYAML takes half a second for 32
MAX_JSON = 2**20  # bytes; a checkpoint's record has some KiB, and a thousand take half a second too

_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_TOO_DEEP = f"has more than {MAX_DEPTH} lists and mappings within each other"
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # no path has a NUL, and UTF-8 has no surrogates


class _RefusedError(Exception):
    """The reason why a document is not accepted although its format can be read."""


@cache  # made at the first use, as a kernel without the extra "train" has no yaml
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Loads plain data: no alias (a few make gigabytes, or a list that holds itself), no date, no bytes, no merged keys."""

        yaml_constructors = {  # noqa: RUF012
            tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in (None, *_TAGS)
        }
        yaml_implicit_resolvers = {  # noqa: RUF012 - the base class declares it
            first: [(tag, form) for tag, form in forms if tag in _TAGS]
            for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent) and self.peek_event().anchor in self.anchors:  # type: ignore[no-untyped-call]
                raise _RefusedError("has an alias (*name): write the value again")
            is_collection = self.check_event(yaml.CollectionStartEvent)
            self.depth += is_collection
            if self.depth > MAX_DEPTH:
                raise _RefusedError(_TOO_DEEP)
            node = super().compose_node(parent, index)
            if is_collection and node is not None and len(node.value) > MAX_ITEMS:
                raise _RefusedError(f"has a list or mapping of more than {MAX_ITEMS:,} items")
            self.depth -= is_collection
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
            keys = [key for key, _ in node.value]
            for key in keys:
                if key.tag != "tag:yaml.org,2002:str":
                    raise _RefusedError(f"has a key that is no text in line {key.start_mark.line + 1}: put it in quotes")
            _refuse_duplicates([key.value for key in keys])
            return super().construct_mapping(node, deep)

    return Loader


def read_yaml(path: Path) -> Any:
    """Read a YAML file; see `load_yaml`. No more of it is read than the limit, as a device has no end.

    Raises:
        OSError: If it cannot be read.
        UsageError: If it is not accepted.
    """
    return load_yaml(_read(path, MAX_YAML), path)


def load_yaml(text: str, where: Path | str) -> Any:
    """Read YAML.

    Args:
        text: The document.
        where: What it is called in messages, such as its path.

    Raises:
        UsageError: If it is not YAML, holds more than plain data, an alias, a key twice or a key that is no text, or is beyond
            a limit.

    Example:
        >>> load_yaml("energy: {name: rbm, hidden: 64}", "run.yaml")
        {'energy': {'name': 'rbm', 'hidden': 64}}
    """
    import yaml

    try:
        _check_size(text, MAX_YAML)
        document = yaml.load(text, Loader=_loader())  # noqa: S506 - it derives from the safe loader
        _check_values(document)
    except _RefusedError as reason:
        raise UsageError(f"{where} {reason}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise UsageError(f"{where} is not YAML: {error}") from error
    return document


def load_json(text: str, where: Path | str) -> Any:
    """Read JSON; ``NaN`` and ``Infinity``, which Python writes, are numbers too.

    Args:
        text: The document.
        where: What it is called in messages, such as its path.

    Raises:
        UsageError: If it is not JSON, holds a key twice, or is beyond a limit.

    Example:
        >>> load_json('{"step": 20}', "checkpoint.json")
        {'step': 20}
    """
    try:
        _check_size(text, MAX_JSON)
        document = json.loads(text, object_pairs_hook=_mapping)
        _check_values(document)
    except RecursionError:
        raise UsageError(f"{where} {_TOO_DEEP}") from None
    except _RefusedError as reason:
        raise UsageError(f"{where} {reason}") from None
    except ValueError as error:
        raise UsageError(f"{where} is not JSON: {error}") from error
    return document


def check_text(text: str, where: str) -> None:
    """Check one value that will be read as YAML later, such as ``"[64, 64]"``; text that is not YAML is accepted as it is.

    Raises:
        UsageError: If it has an alias or is beyond a limit.
    """
    import yaml

    try:
        _check_size(text, MAX_YAML)
        yaml.compose(text, Loader=_loader())
    except _RefusedError as reason:
        raise UsageError(f"{where} {reason}") from None
    except yaml.YAMLError:
        return


def _read(path: Path, limit: int) -> str:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    try:
        if len(content) <= limit:
            return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not text in UTF-8: {error}") from error
    raise UsageError(f"{path} has more than {limit:,} bytes")


def _check_size(text: str, limit: int) -> None:
    if len(text) > limit:
        raise _RefusedError(f"has more than {limit:,} bytes")


def _check_values(value: Any, depth: int = 1) -> None:
    """Refuse what no file that ebmcore writes holds, and what raises errors wherever it is shown or used as a path."""
    if isinstance(value, (dict, list)):
        if depth > MAX_DEPTH:
            raise _RefusedError(_TOO_DEEP)
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_values(item, depth + 1)
    elif isinstance(value, int):
        if value.bit_length() > 64:
            raise _RefusedError("has a whole number of more than 64 bits")
    elif isinstance(value, str) and _UNWRITABLE.search(value):
        raise _RefusedError("has text with a character that cannot be written")


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_duplicates([key for key, _ in pairs])
    return dict(pairs)


def _refuse_duplicates(keys: list[str]) -> None:
    if len(set(keys)) < len(keys):
        key, count = Counter(keys).most_common(1)[0]
        raise _RefusedError(f"has the key {key!r} {count} times")
