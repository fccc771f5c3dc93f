"""What a document of a stranger may hold, and how anything else is refused."""

from __future__ import annotations

import time

import pytest

from ebmcore.errors import UsageError
from ebmcore.training.documents import MAX_DEPTH, MAX_JSON, MAX_YAML, check_text, load_json, load_yaml, read_yaml

BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)

YAML = {
    "alias bomb": (BOMB, "has an alias"),
    "self-reference": ("a: &a [*a]", "has an alias"),
    "self-reference of a mapping": ("&a {b: *a}", "has an alias"),
    "nested lists": ("[" * 10_000, "within each other"),
    "nested mappings": ("{a: " * 5_000, "within each other"),
    "nested block lists": ("- " * 10_000, "within each other"),
    "nested keys": ("? " * 10_000, "within each other"),
    "long list": ("a: [" + "1, " * 1000 + "1]", "more than 1,000 items"),
    "long mapping": ("{" + ", ".join(f"k{i}: 1" for i in range(1001)) + "}", "more than 1,000 items"),
    "too large": ("#" * (MAX_YAML + 1), f"more than {MAX_YAML:,} bytes"),
    "object": ("a: !!python/object/apply:os.system [id]", "is not YAML"),
    "bytes": ("a: !!binary aGk=", "is not YAML"),
    "date": ("a: !!timestamp 2001-01-01", "is not YAML"),
    "set": ("a: !!set {b}", "is not YAML"),
    "key twice": ("a: 1\na: 2", "has the key 'a' 2 times"),
    "whole number as key": ("b: {1: 2}", "has a key that is no text in line 1"),
    "true as key": ("on: 2", "has a key that is no text"),
    "list as key": ("? [a]\n: 2", "has a key that is no text"),
    "null as key": ("~: 2", "has a key that is no text"),
    "long number": ("a: 1" + "0" * 5_000, "is not YAML"),
    "long hexadecimal number": ("a: 0x1" + "0" * 5_000, "whole number of more than 64 bits"),
    "long sexagesimal number": ("a: 1" + ":59" * 5_000, "whole number of more than 64 bits"),
    "surrogate": (r'a: "\ud800"', "cannot be written"),
    "NUL": (r'a: "\0"', "cannot be written"),
    "NUL in a key": (r'"\0": 1', "cannot be written"),
    "control character": ("a: \x1b", "is not YAML"),
    "two documents": ("--- 1\n--- 2", "is not YAML"),
    "broken": ("a: [", "is not YAML"),
}

JSON = {
    "nested lists": ("[" * 500_000, "within each other"),
    "nested mappings": ('{"a":' * 100_000, "within each other"),
    "one list too many": ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "within each other"),
    "too large": (" " * (MAX_JSON + 1), f"more than {MAX_JSON:,} bytes"),
    "key twice": ('{"a": {"b": 1, "b": 2}}', "has the key 'b' 2 times"),
    "long number": ("1" * 5_000, "is not JSON"),
    "number of 100 bits": (str(2**100), "whole number of more than 64 bits"),
    "surrogate": (r'"\ud800"', "cannot be written"),
    "NUL": (r'"\u0000"', "cannot be written"),
    "broken": ("[1", "is not JSON"),
    "empty": ("", "is not JSON"),
}


@pytest.mark.parametrize(("text", "message"), YAML.values(), ids=YAML)
def test_hostile_yaml_is_refused(text, message):
    assert_refused(load_yaml, text, message)


@pytest.mark.parametrize(("text", "message"), JSON.values(), ids=JSON)
def test_hostile_json_is_refused(text, message):
    assert_refused(load_json, text, message)


def assert_refused(load, text, message):
    """It raises within a second, in one line that names the document."""
    started = time.perf_counter()
    with pytest.raises(UsageError, match=message) as caught:
        load(text, "stranger.yaml")
    assert time.perf_counter() - started < 1
    assert str(caught.value).startswith("stranger.yaml ")
    assert len(str(caught.value)) < 1000


def test_plain_data_is_read():
    text = "{energy: {name: rbm, hidden: 64, centered: true}, out: 2001-01-01, lr: .5, seed: null, hidden: [64, 64], e: é}"
    expected = {"energy": {"name": "rbm", "hidden": 64, "centered": True}, "out": "2001-01-01", "lr": 0.5, "seed": None}
    assert load_yaml(text, "a") == expected | {"hidden": [64, 64], "e": "é"}


def test_as_many_levels_as_allowed_are_read():
    text = "[" * MAX_DEPTH + "1" + "]" * MAX_DEPTH
    assert load_yaml(text, "a") == load_json(text, "a")


def test_same_key_in_two_mappings_is_read():
    assert load_yaml("a: {b: 1}\nc: {b: 2}", "a") == {"a": {"b": 1}, "c": {"b": 2}}


def test_infinity_is_a_number_in_json():
    assert load_json("[Infinity, 1e999, 18446744073709551615]", "a") == [float("inf"), float("inf"), 2**64 - 1]


def test_files_are_read_up_to_the_limit(tmp_path):
    """A file without an end is not read to its end."""
    (tmp_path / "a").write_text("[1]", encoding="utf-8")
    assert read_yaml(tmp_path / "a") == [1]
    (tmp_path / "a").write_bytes(b"\xff")
    with pytest.raises(UsageError, match="is not text in UTF-8"):
        read_yaml(tmp_path / "a")
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)  # without a disk's block
    with pytest.raises(UsageError, match="more than"):
        read_yaml(tmp_path / "a")


@pytest.mark.parametrize(
    "text", ["&a [*a]", "[" * 100, "[" + "1, " * 1000 + "1]", "[" + "&a [1], *a]", "x" * (MAX_YAML + 1)]
)
def test_hostile_value_is_refused(text):
    with pytest.raises(UsageError, match="^option --a has"):
        check_text(text, "option --a")


@pytest.mark.parametrize("text", ["", "*x", "a: b: c", "{", "!tag", "&a", "runs/demo", "[64, 64]", "1: 2", "é"])
def test_other_values_are_accepted(text):
    check_text(text, "option --a")
