"""Options of ``train`` and ``evaluate``, made from the signatures of the components that are named.

``--energy rbm --energy.hidden 64`` on the command line is ``energy: {name: rbm, hidden: 64}`` in a YAML file. The options of
a component, their types and their help come from its own constructor, so a third-party plugin's appear by themselves.
The optimizers of ``torch.optim`` are named in the same way: ``--optimizer adamw --optimizer.betas "[0.0, 0.999]"``.
``--metric`` and ``--observer`` may be given several times, and ``--metric.OPTION`` belongs to the metric named before it; in a
file they are lists.
A schedule is the same text in both: ``--schedules.sampler.step_size "cosine(0.1, 0.01)"`` on the command line is
``schedules: {sampler.step_size: "cosine(0.1, 0.01)"}`` in a file.
In place of a component's name, a user's own class has its place, ``model.py:MyEnergy`` (`ebmcore.cli.code`), and a data set the
file that it reads (`ebmcore.cli.files`).
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from ebmcore import host
from ebmcore._keywords import constructor_keywords, takes_any_keyword
from ebmcore.cli import code
from ebmcore.cli.files import PLACES_HELP, name_reader, reader
from ebmcore.errors import EbmcoreError, UsageError
from ebmcore.training import fit
from ebmcore.training.configuration import LISTED, PARTS, Config, admit, components, read_config
from ebmcore.training.documents import check_text, load_yaml
from ebmcore.training.numbers import check_magnitudes, check_numbers
from ebmcore.training.optimizers import OPTIMIZERS, optimizer_class
from ebmcore.training.options import PLACES
from ebmcore.training.preparation import DEFAULT_BATCH_SIZE
from ebmcore.training.schedules import SCHEDULES

# No value names code: for a parameter of a class, a function or a module jsonargparse would import what the value says.
set_parsing_settings(import_path_denylist=["*"])

_NOT_OPTIONS: set[str | int] = {
    "loss",
    "data",
    "weights",
    "resume",
    "observers",
    "optimizer",
    "measure",
    "schedules",
    "config",
}


def parse(prog: str, arguments: Sequence[str], *, parts: Sequence[str] = tuple(PARTS), base: Config | None = None) -> Config:
    """The resolved configuration. Later sources take precedence: what the energy recommends, recipe, files, other arguments.

    With a ``base``, such as the configuration of a run to resume, nothing is recommended.

    Raises:
        UsageError: For an unknown name or option or a value of the wrong type, in one line.
    """
    arguments, allowed = code.split_off_flag(arguments)
    arguments, loaded = _split_off_files(_spelled_out(arguments))
    arguments, schedules = _split_off_schedules(arguments)
    _check_arguments(arguments)
    sources = [_named_parts(config) for config in (base or {}, *loaded, {"schedules": schedules} if schedules else {})]
    known = {part: [listed for source in sources if (listed := source.pop(part, None))][-1:] for part in LISTED}
    arguments = normal = name_reader(_name_parts(arguments, parts))
    several: dict[str, list[tuple[Config, list[str]]]] = {}
    for part in LISTED:
        normal, several[part] = _split_off(part, normal, known[part][0] if known[part] else [])
    written = _names_in(arguments, parts)
    named = {part: name for part, name in written if part not in LISTED}
    chosen = _merge(*sources) | {part: {"name": name} for part, name in named.items()}
    chosen |= {part: [options for options, _ in listed] for part, listed in several.items()}
    admit(components(chosen), given=[(PARTS[part][0], name) for part, name in written], allowed=allowed)
    energy = chosen.get("energy", {}).get("name")
    if base is None and "loss" in parts:
        recommended = getattr(host.load("energy", energy), "training_defaults", {}) if energy else {}
        sources = [_named_parts(recommended), *sources]
    merged = _merge(*sources)
    given = {argument.partition("=")[0] for argument in arguments}
    for length, other in (("epochs", "steps"), ("steps", "epochs")):  # a length replaces that of a file, in either unit
        if f"--{length}" in given and f"--{other}" not in given:
            merged.pop(other, None)
    schedules = _schedule_texts(merged.pop("schedules", None))
    names = {part: merged.get(part, {}).get("name") for part in parts} | named
    if (
        "loss" in parts and not names["optimizer"] and not _asks_for_help(arguments)
    ):  # the help shows the options of the named components
        names["optimizer"] = "adam"
        merged["optimizer"] = {"name": "adam"} | merged.get("optimizer", {})
    for part in parts:  # another component than the base's takes none of the base's options
        if merged.get(part, {}).get("name") not in (None, names[part]):
            merged[part] = {"name": names[part]}
    if _asks_for_help(arguments):
        names |= {part: listed[0][0]["name"] for part, listed in several.items() if listed}
    config = _parsed(prog, names, parts, merged, normal)
    for option in ("resume", "allow_code"):  # in the parser for their help alone
        config.pop(option, None)
    config = {key: value for key, value in config.items() if not (key in parts and not value.get("name"))}
    config = {key: value for key, value in config.items() if key not in LISTED}
    if "loss" in parts:
        config["schedules"] = schedules
    for part, listed in several.items():
        parsed = [_parsed(prog, {part: one["name"]}, (part,), {part: one}, given) for one, given in listed]
        if parsed:
            config[part] = [one[part] for one in parsed]
    return config


def _spelled_out(arguments: Sequence[str]) -> list[str]:
    """``--compile`` alone is ``--compile true``."""
    return [
        "--compile=true" if argument == "--compile" and following.startswith("--") else argument
        for argument, following in itertools.pairwise([*arguments, "--"])
    ]


def _parsed(
    prog: str, names: dict[str, str | None], parts: Sequence[str], merged: Config, arguments: Sequence[str]
) -> Config:
    _check_texts(merged)
    merged, nulls = _split_off_nulls(merged)
    known = {part: name for part, name in names.items() if name is not None}
    parser = _parser(prog, known, parts, for_help=_asks_for_help(arguments))
    merged, arguments, further = _split_off_further(merged, arguments, known, _option_strings(parser))
    _check_known(merged, parser, prog, known)
    try:
        config = parser.parse_args(["--config", yaml.safe_dump(merged), *nulls, *arguments]).as_dict()
    except argparse.ArgumentError as error:
        raise UsageError(_one_line(error, parser, prog, known)) from error
    except OverflowError as error:  # a whole number for a real option
        raise UsageError(f"a number is too large: {error}; see '{prog} --help'") from error
    except SystemExit as end:
        if end.code:
            raise UsageError(f"wrong options; see '{prog} --help'") from end
        raise
    config = {key: _plain(value) for key, value in config.items() if key not in ("config", "recipe", "schedules")}
    for part, options in further.items():
        config[part] |= options
    check_numbers(config)
    defaults = parser.get_defaults().as_dict()
    for part in PARTS:
        check_magnitudes(config.get(part), defaults.get(part), f"--{part}")
    for part in known:
        for option, value in config[part].items():
            if not _is_plain(value):
                kind = type(value).__name__
                raise UsageError(
                    f"option --{part}.{option}: no file can hold a {kind}: let the class take its name as a text"
                )
    return config


def _split_off_further(
    merged: Config, arguments: Sequence[str], names: Mapping[str, str], known: Sequence[str]
) -> tuple[Config, list[str], dict[str, Config]]:
    """Configuration and arguments without the options that the parser has not but the class takes, and these by part."""
    classes = {part: host.load(PARTS[part][0], name) for part, name in names.items() if part != "optimizer"}
    open_to = {part: None if takes_any_keyword(cls) else _beyond_yaml(cls) for part, cls in classes.items()}

    def is_further(part: str, option: str) -> bool:
        options = open_to.get(part, set())
        return f"--{part}.{option}" not in known and (option.isidentifier() if options is None else option in options)

    further: dict[str, Config] = {}
    for part in open_to:
        options = merged.get(part, {})
        further[part] = {option: value for option, value in options.items() if is_further(part, option)}
        if further[part]:
            kept = {option: value for option, value in options.items() if option not in further[part]}
            merged = merged | {part: kept}
    rest = []
    following = iter(arguments)
    for argument in following:
        flag, sign, value = argument.partition("=")
        part, _, option = flag.removeprefix("--").partition(".")
        if not flag.startswith("--") or not is_further(part, option):
            rest.append(argument)
            continue
        value = value if sign else next(following, "--")
        if value.startswith("--"):
            raise UsageError(f"option {flag} needs a value: {flag} VALUE")
        further[part][option] = load_yaml(value, f"option {flag}")
    return merged, rest, further


def _beyond_yaml(cls: type[Any]) -> set[str]:
    """Options with a default that no file holds, such as a class; it counts unless another value is given."""
    return {name for name, p in constructor_keywords(cls).items() if p.default is not p.empty and not _is_plain(p.default)}


def _is_plain(value: Any) -> bool:
    try:
        yaml.safe_dump(_plain(value))
    except yaml.YAMLError:
        return False
    return True


def _split_off_nulls(merged: Config) -> tuple[Config, list[str]]:
    """A configuration without the options that are null, and these as arguments.

    In a file jsonargparse accepts null for any option; on the command line it compares null with the option's type.
    """
    nulls = [f"--{option}=null" for option, value in merged.items() if value is None]
    config = {option: value for option, value in merged.items() if value is not None}
    for part in PARTS:
        if isinstance(config.get(part), dict):
            nulls += [f"--{part}.{option}=null" for option, value in config[part].items() if value is None]
            config[part] = {option: value for option, value in config[part].items() if value is not None}
    return config, nulls


def _check_known(merged: Config, parser: ArgumentParser, prog: str, named: Collection[str]) -> None:
    """Check the names of options, as jsonargparse overlooks a few, such as one whose value is an empty mapping."""
    known = _option_strings(parser)
    within = [f"{part}.{option}" for part in PARTS if isinstance(merged.get(part), dict) for option in merged[part]]
    for option in [*within, *(option for option in merged if option not in PARTS)]:
        if f"--{option}" not in known or ("." in option and option not in within):
            raise UsageError(_unknown(f"--{option}", parser, prog, named))


def _check_arguments(arguments: Sequence[str]) -> None:
    """Check the values on the command line, each of which jsonargparse reads as YAML without limits."""
    flag = "--"
    for argument in arguments:
        name, sign, value = argument.partition("=") if argument.startswith("--") else (flag, "=", argument)
        flag = name
        check_text(value if sign else "", f"option {flag}")


def _check_texts(value: Any, name: str = "") -> None:
    """Check the text within a file's values, each of which jsonargparse reads as YAML once more."""
    if isinstance(value, str):
        check_text(value, f"option --{name}")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _check_texts(item, f"{name}.{key}" if name else key)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_texts(item, name)


def _asks_for_help(arguments: Sequence[str]) -> bool:
    return not {"-h", "--help"}.isdisjoint(arguments)


def _split_off_schedules(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Arguments without ``--schedules.OPTION TEXT``, and the texts by option."""
    rest, schedules = [], {}
    following = iter(arguments)
    for argument in following:
        flag, sign, value = argument.partition("=")
        if flag.startswith("--schedules."):
            schedules[flag.removeprefix("--schedules.")] = value if sign else next(following, "")
        else:
            rest.append(argument)
    return rest, schedules


def _schedule_texts(schedules: Any) -> dict[str, str]:
    if schedules is None:
        return {}
    if not isinstance(schedules, dict):
        raise UsageError(f"schedules must be a mapping such as '{{optimizer.lr: \"linear(end=0)\"}}', got {schedules!r}")
    return {option: str(text) for option, text in schedules.items()}


def recipe_config(name: str) -> Config:
    """The configuration that a component of the kind ``recipe`` stands for."""
    recipe: Any = host.load("recipe", name)
    return dict(recipe) if isinstance(recipe, Mapping) else read_config(Path(recipe))


_ONE = {"metric": "a metric", "observer": "an observer"}


def _split_off(part: str, arguments: Sequence[str], known: list[Config]) -> tuple[list[str], list[tuple[Config, list[str]]]]:
    """Arguments without those of metrics, or of observers; and each with the options that it has already, and its arguments."""
    rest: list[str] = []
    listed: list[tuple[Config, list[str]]] = []
    following = iter(arguments)
    for argument in following:
        flag, sign, value = argument.partition("=")
        if not flag.startswith(f"--{part}."):
            rest.append(argument)
            continue
        value = value if sign else next(following, "")
        if flag == f"--{part}.name":
            if not value or value.startswith("-"):
                raise UsageError(f"--{part} needs the name of {_ONE[part]}: see 'ebmcore list {part}'")
            if value in (options["name"] for options, _ in listed):
                raise UsageError(f"--{part} {value} is given twice: name it once, with its options after it")
            listed.append((next((one for one in known if one["name"] == value), {"name": value}), []))
            continue
        if not listed:
            if len(known) != 1:
                raise UsageError(f"{flag} belongs to {_ONE[part]}: name it before, --{part} NAME {flag} {value}")
            listed.append((known[0], []))
        listed[-1][1].append(f"{flag}={value}")
    return rest, listed or [(options, []) for options in known]


def _parser(prog: str, names: dict[str, str], parts: Sequence[str], *, for_help: bool) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=__doc__, print_config=None, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with these options; the command line overrides it")
    parser.add_argument(code.FLAG, action="store_true", help=code.HELP)
    training = "loss" in parts
    if training:
        parser.add_argument(
            "--resume", metavar="RUN", help="resume the run in that directory; auto: the one in --out, if any"
        )
        text = "start a new run from the weights and chains of that one"
        parser.add_argument("--from", type=str | None, metavar="RUN", help=text)
        parser.add_argument("--recipe", metavar="NAME", help="start from that configuration; all other options override it")
    if tuple(parts) == ("metric",):
        parser.add_argument("--checkpoint", type=int | None, metavar="STEP", help="step of the checkpoint (the last one)")
        for place in PLACES:
            parser.add_argument(f"--data.{place}", type=str | None, metavar="PLACE", help=PLACES_HELP)
    for part in parts:
        kind, given = PARTS[part]
        shown = _losses_without_sampler() if part == "sampler" and training and for_help else ""
        shown += "" if part in names else f"; then '{prog} --{part} NAME --help' shows its options"
        parser.add_argument(f"--{part}.name", type=str, metavar="NAME", help=f"the {kind}; also --{part} NAME{shown}")
        if part in names:
            cls = optimizer_class(names[part]) if part == "optimizer" else host.load(kind, names[part])
            keywords = constructor_keywords(cls)
            if "name" in keywords and keywords["name"].default is inspect.Parameter.empty:
                raise UsageError(
                    f"the {kind} {names[part]} needs an option called name, which names the component: rename it"
                )
            skip = given | {"name"} | _beyond_yaml(cls)
            added = parser.add_class_arguments(cls, part, skip=skip, sub_configs=False, as_group=True, fail_untyped=False)
            mandatory = {f"{part}.{name}" for name, p in keywords.items() if p.default is p.empty}
            for action in parser._actions:
                if action.dest in mandatory.intersection(added):  # one without a type would be None where it is not given
                    action.required = True
                if action.option_strings == [f"--{part}"]:  # it would take a file; here it takes a name
                    action.help = argparse.SUPPRESS
    if training:
        parser.add_function_arguments(fit, skip=_NOT_OPTIONS, as_group=True)
        parser.set_defaults({"batch_size": DEFAULT_BATCH_SIZE})  # recorded as the number that it is
        text = f"how that option changes during training: {', '.join(SCHEDULES)}, e.g. 'cosine(0.1, 0.01)'; see the Python class"
        parser.add_argument("--schedules.OPTION", type=str, metavar="SCHEDULE", help=text)
    return parser


def _losses_without_sampler() -> str:
    losses = []
    for component in host.list_components("loss"):
        try:
            if not host.load("loss", component.id).needs_sampler:
                losses.append(component.name)
        except EbmcoreError:  # a broken plugin does not break the help
            continue
    return f" (a loss that takes none: {', '.join(losses)})" if losses else " (each installed loss needs one)"


def _split_off_files(arguments: Sequence[str]) -> tuple[list[str], list[Config]]:
    rest, recipes, loaded = [], [], []
    following = iter(arguments)
    for argument in following:
        flag, sign, value = argument.partition("=")
        if flag not in ("--config", "--recipe"):
            rest.append(argument)
            continue
        name = value if sign else next(following, None)
        if not name:
            what = "the path of a YAML file" if flag == "--config" else "the name of a recipe: see 'ebmcore list recipe'"
            raise UsageError(f"{flag} needs {what}")
        if flag == "--config":
            loaded.append(read_config(Path(name)))
        else:
            recipes.append(recipe_config(name))
    return rest, [*recipes, *loaded]


def _name_parts(arguments: Sequence[str], parts: Sequence[str]) -> list[str]:
    """``--energy rbm`` as ``--energy.name rbm``."""
    flags = {f"--{part}" for part in parts}
    pieces = [argument.partition("=") for argument in arguments]
    return [f"{flag}.name{sign}{value}" if flag in flags else f"{flag}{sign}{value}" for flag, sign, value in pieces]


def _names_in(arguments: Sequence[str], parts: Sequence[str]) -> list[tuple[str, str]]:
    """Part and name of each component that is named, a part as often as it is."""
    names = []
    for argument, following in itertools.zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, sign, value = argument.partition("=")
        part = flag.removeprefix("--").removesuffix(".name")
        if part in parts and flag.endswith(".name"):
            name = value if sign else following
            names.append((part, name))
            if not name or name.startswith("-"):
                where = ", ".join(OPTIMIZERS) if part == "optimizer" else f"see 'ebmcore list {PARTS[part][0]}'"
                raise UsageError(f"--{part} needs the name of a component of the kind {PARTS[part][0]}: {where}")
    return names


def _named_parts(config: Config) -> Config:
    """``energy: rbm`` as ``energy: {name: rbm}``, and ``metric`` and ``observer`` as lists of these."""
    config = {key: value for key, value in config.items() if not (key in PARTS and value is None)}
    named: Config = {part: _named(part, config[part]) for part in PARTS if part in config and part not in LISTED}
    for part in (part for part in LISTED if part in config):
        listed = config[part] if isinstance(config[part], list) else [config[part]]
        named[part] = [_named(part, one) for one in listed]
        if not all("name" in one for one in named[part]):
            raise UsageError(f"every {part} of a configuration needs its name")
        given = [one["name"] for one in named[part]]
        if len(set(given)) < len(given):
            raise UsageError(f"the configuration names {_ONE[part]} twice: {', '.join(given)}")
    return config | named


def _named(part: str, value: Any) -> Config:
    name = value.get("name", part) if isinstance(value, dict) else value
    if not isinstance(name, str) or not name:
        raise UsageError(f"the configuration's {part!r} must be a name, or a mapping with one under 'name'; got {value!r}")
    if isinstance(value, dict):
        return value
    file = reader(value) if part == "data" else None
    return {"name": value} if file is None else {"name": file, "path": value}


def _merge(*configs: Config) -> Config:
    merged: Config = {}
    for config in configs:
        for key, value in config.items():
            old = merged.get(key)
            both = isinstance(value, dict) and isinstance(old, dict) and value.get("name") in (None, old.get("name"))
            merged[key] = old | value if both else value
    return merged


def _plain(value: Any) -> Any:
    """Only what YAML holds."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


_SAID = {"int": "a whole number", "float": "a number", "str": "a text", "NoneType": "null"}


def _one_line(error: argparse.ArgumentError, parser: ArgumentParser, prog: str, named: Collection[str]) -> str:
    message = " ".join(str(error).split())
    unknown = re.search(r"unrecognized arguments: (--[\w.-]+)", message) or re.search(
        r"Key '([\w.]+)' is not expected", message
    )
    within = re.search(r'Parser key "([\w.]+)":.*NestedArg\(key=\'([\w.]+)\', val=\'?(.*?)\'?\)', message)
    if within:
        outer, option, value = within.groups()
        known = f"--{outer}_options" in _option_strings(parser)
        hint = f"write --{outer}_options '{{{option}: {value}}}'" if known else f"--{outer} has no options of its own"
        return f"unknown option --{outer}.{option}: {hint}; see '{prog} --help'"
    if unknown is None:
        message = re.sub(r'Parser key "([\w.]+)":', r"option --\1:", message)
        message = re.sub(r"<class '([\w.]+)'>", r"\1", message).replace("typing.", "")
        message = re.sub(
            r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: (.*)",
            lambda m: f"Expected {' or '.join(_SAID.get(t.strip(), t.strip()) for t in m[1].split(','))}. Got value: {m[2]}",
            message,
        )
        message = re.sub(
            r"Importing ('.*?') is not allowed, .* to allow it\.",
            r"\1 is not imported: a value names no code, only an installed component",
            message,
        )
        message = re.sub(r"Expected a (int|float|str)\b", lambda m: f"Expected {_SAID[m[1]]}", message)
        message = re.sub(
            r"Expected a (?:collections\.abc\.Sequence|List|list)\b", "Expected a list such as '[64, 64]'", message
        )
        message = re.sub(
            r"\b(?:collections\.abc\.)?(?:Sequence|List|list)\[([^\[\]]*)\]",
            lambda m: f"a list such as '{'[a, b]' if 'str' in m[1] else '[64, 64]'}'",
            message,
        )
        required = re.fullmatch(r"the following arguments are required: (.*)", message)
        if required:
            message = "missing " + ", ".join(f"--{name}" for name in required.group(1).split(", "))
        return f"{message}; see '{prog} --help'"
    return _unknown("--" + unknown.group(1).removeprefix("--"), parser, prog, named)


def _option_strings(parser: ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if option.startswith("--")]


def _unknown(option: str, parser: ArgumentParser, prog: str, named: Collection[str]) -> str:
    """The message for an option that there is not."""
    part, dot, _ = option.removeprefix("--").partition(".")
    if dot and part in PARTS and part not in named and f"--{part}.name" in _option_strings(parser):
        kind = PARTS[part][0]
        return f"option {option} needs the name of the {kind}: --{part} NAME, in a file '{part}: {{name: NAME}}'"
    known = {o.removesuffix(".name") for o in _option_strings(parser) if o != "--print_shtab" and not o.endswith("+")}
    group = sorted(o for o in known if (o.startswith(f"--{part}.") if dot else "." not in o))
    close = difflib.get_close_matches(option, group, n=1, cutoff=0.75)
    hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(group) or 'no such options'}."
    return f"unknown option {option}: {hint} See '{prog} --help'"
