"""The command line: one subcommand per workflow, built from its config. Only this module prints and exits.

A workflow's module is imported when its command is called, and torch only when it runs, so help is quick.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints

from anysat import IS_TOLD_PAGES, LARGE_PAGES, __version__
from anysat.errors import AnySatError, InputError, MisfitWarning, MissingExtraError, RecordError, UnknownNameError

COMMANDS = {
    "embed": ("anysat.workflows.embed", "EmbedConfig", "embed"),
    "embed --update": ("anysat.workflows.embed", "UpdateConfig", "update"),
    "plan": ("anysat.workflows.plan", "PlanConfig", "plan"),
    "plan --run": ("anysat.workflows.plan", "PlanMapConfig", "plan_map"),
    "pretrain": ("anysat.workflows.pretrain", "PretrainConfig", "pretrain"),
    "probe": ("anysat.workflows.probe", "ProbeConfig", "probe"),
    "finetune": ("anysat.workflows.finetune", "FinetuneConfig", "finetune"),
    "evaluate": ("anysat.workflows.evaluate", "EvaluateConfig", "evaluate"),
    "evaluate --compare": ("anysat.workflows.evaluate", "CompareConfig", "compare"),
    "predict": ("anysat.workflows.predict", "PredictConfig", "predict"),
    "zonal": ("anysat.workflows.zonal", "ZonalConfig", "zonal"),
    "similar": ("anysat.workflows.store_maps", "SimilarConfig", "similar"),
    "classify": ("anysat.workflows.store_maps", "ClassifyConfig", "classify"),
    "export": ("anysat.workflows.export", "ExportConfig", "export"),
    "weights convert": ("anysat.workflows.weights", "ConvertConfig", "convert"),
    "weights inspect": ("anysat.workflows.weights", "InspectConfig", "inspect"),
    "datasets list": ("anysat.workflows.datasets", "ListConfig", "list_datasets"),
    "datasets describe": ("anysat.workflows.datasets", "DescribeConfig", "describe"),
    "datasets check": ("anysat.workflows.datasets", "CheckConfig", "check"),
    "datasets show": ("anysat.workflows.datasets", "ShowConfig", "show"),
    "datasets stats": ("anysat.workflows.datasets.stats", "StatsConfig", "stats"),
    "datasets pack": ("anysat.workflows.datasets.pack", "PackConfig", "pack"),
    "datasets embed": ("anysat.workflows.datasets.embed", "TableConfig", "embed_dataset"),
    "datasets predict": ("anysat.workflows.datasets.predict", "TilesConfig", "predict_dataset"),
    "catalog validate": ("anysat.workflows.catalog", "ValidateConfig", "validate"),
    "world make": ("anysat.workflows.world", "WorldMakeConfig", "make"),
    "sensors": ("anysat.workflows.sensors", "SensorsConfig", "sensors"),
    "demo": ("anysat.workflows.demo", "DemoConfig", "demo"),
}
"""Module, config and function by command. The config's docstring and fields are the help.

A command with an option, such as `embed --update`, is what the command does if that option is given.
"""

_LEARNING = ("pretrain", "finetune")
"""Commands that hold gradients and moments of all weights. Large pages make them slower and larger."""

_GEO = {
    "affine", "geopandas", "h5netcdf", "h5py", "jsonschema", "matplotlib", "odc", "pandas", "pyarrow", "pyproj",
    "pystac", "rasterio", "xarray", "zarr", "zarr_cm",
}  # fmt: skip
_TRAIN = {"lightning", "sklearn", "tensorboard", "tfrecord", "torchmetrics"}
_EXTRA_OF = dict.fromkeys(_GEO, "geo") | dict.fromkeys(_TRAIN, "train")

_WRITTEN = ("out", "update", "cache")
"""Config fields that name where results are written."""

_WIDEST = 10_000
"""Largest number of characters per line in a pipe."""
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "NoneType": "null", "list": "a list",
          "tuple": "a list", "dict": "a table", "str": "text"}  # fmt: skip
"""Words for types."""
_ALONE = ("--help", "--print_config", "--")
"""Options without a value."""
_UNKNOWN = re.compile(
    r"(?:Group '([\w.]+)' does not accept option|^Option) '([\w.]+)'|^unrecognized arguments: --([^\s=]+)"
)
"""The parser's messages about an unknown option, in a file or typed."""
_NEGATIVE = re.compile(r"-[\d.]")
"""Start of a value that is one or more numbers, the first one negative. No option starts like this."""


def run() -> int:
    """Run the command line as a program of its own."""
    if not IS_TOLD_PAGES and sys.argv[1:2] and sys.argv[1] in _LEARNING:
        os.environ[LARGE_PAGES] = "0"
    status = main()
    gc.freeze()  # otherwise the garbage collector goes through all objects of torch and others at exit, for 0.7 s
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit status: 0 done, 1 problems found, 2 a mistake in the call or its input."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words in (["--version"], ["-V"]):
        print(__version__)
        return 0
    named = (" ".join(words[:count]) for count in (2, 1) if not any("--" in word for word in words[:count]))
    command = next((name for name in named if name in COMMANDS), None)
    if command is None:
        return _overview(words)
    words = words[len(command.split()) :]
    mode = _mode(command, words)
    module_name, config_name, function_name = COMMANDS[mode]
    module = import_module(module_name)
    parser = make_parser(mode, getattr(module, config_name))
    words = ["--help"] if {"-h", "--help"} & set(words) else words
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that unfinished files are removed
    try:
        config = _parse(parser, getattr(module, config_name), words)
        with _plain_warnings(command):
            result = getattr(module, function_name)(config)
    except AnySatError as error:
        print(f"anysat {command}: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(f"anysat {command}: {MissingExtraError(error.name or '', extra)}", file=sys.stderr)
        return 2
    except OSError as error:  # such as a folder without permission or a full disk: the system's own message says it
        print(f"anysat {command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    if result is not None:
        _print(result)
    return int(getattr(result, "exit_status", 0))


def _mode(command: str, words: Sequence[str]) -> str:
    """Return the command, with the option that changes what it does, if that is given."""
    modes = (f"{command} {word.partition('=')[0]}" for word in words)
    return next((mode for mode in modes if mode in COMMANDS), command)


@contextlib.contextmanager
def _plain_warnings(command: str) -> Iterator[None]:
    """Show warnings for users like errors, without a place in the code."""
    usual = warnings.formatwarning

    def shown(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> str:
        is_plain = issubclass(category, MisfitWarning)
        return f"anysat {command}: {message}\n" if is_plain else usual(message, category, *place, **options)

    warnings.formatwarning = shown
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _print(result: Any) -> None:
    """Print to the screen. Elsewhere, as in a pipe, tables are as wide as they need, unless COLUMNS says otherwise."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(soft_wrap=True, markup=False, emoji=False)  # paths may have brackets
    if not console.is_terminal and "COLUMNS" not in os.environ:
        wanted = Measurement.get(console, console.options.update(max_width=_WIDEST), result).maximum
        console.width = max(console.width, wanted)
    console.print(result)


def make_parser(command: str, config: type[Any]) -> Any:
    """Create the parser of a command from the fields of its config.

    A field with the metadata `positional` (its name in the usage line) and `help` takes the words without an option
    name. All others are options, with the help in their metadata or else in the text beneath the field.
    """
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    lists = {name for name, kind, _ in _options(config) if _is_list(kind)}

    class Parser(ArgumentParser):  # shows options with dashes, as users type them
        def format_help(self, *formatter: Any) -> str:
            return _dashed(super().format_help(*formatter))

        def _apply_actions(
            self, cfg: Any, *others: Any, **named: Any
        ) -> Any:  # called for options from files, among others
            return super()._apply_actions(_listed(cfg, lists), *others, **named)

        def error(self, message: str, *others: Any, **named: Any) -> Any:
            if not self.exit_on_error:  # a part of the options, whose mistakes the whole tells
                return super().error(message, *others, **named)
            words = [str(action.metavar) for action in self._actions if not action.option_strings]
            raise _mistake(message, command, [*self._option_string_actions, *words])

    parser = Parser(prog=f"anysat {command.partition(' --')[0]}", allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of the options below, spelled with underscores.")
    fields = [field for field in dataclasses.fields(config) if "positional" in field.metadata]
    for field in fields:
        several = "list" in str(field.type)
        shown, text = field.metadata["positional"], field.metadata["help"]
        parser.add_argument(
            field.name, nargs="*" if several else "?", metavar=shown, help=text, default=argparse.SUPPRESS
        )
    parser.add_class_arguments(config, None, skip={field.name for field in fields})
    told = {name: about["help"] for name, _, about in _options(config) if "help" in about}
    for action in parser._actions:
        action.help = told.get(action.dest, action.help)
    return parser


def _mistake(message: str, command: str, options: Iterable[str]) -> AnySatError:
    """Return the error of the package for a message of the parser, with options as they are typed.

    Args:
        message: The parser's message.
        command: The command.
        options: All options of the command, and the names of its words.
    """
    said, is_missing, missing = message.partition("arguments are required: ")
    if is_missing:
        names = re.sub(r"[^\s,]+", lambda name: f"--{name[0].replace('_', '-')}", missing)
        return AnySatError(said + is_missing + names)
    if (unknown := re.search(_UNKNOWN, message)) is not None:
        group, name = unknown[1], unknown[2] or unknown[3]
        known = [_dashed(one) for one in options if one.startswith("--") and not one.endswith(("+", "shtab"))]
        option = _dashed(f"--{group}.{name}" if group else f"--{name}")
        return UnknownNameError("option", option, known, f"`anysat {command} --help` lists all")
    keys, value = re.findall(r'Parser key "([^"]+)"', message), re.search(r"(?:Got|Given) value: (.*)", message)
    kinds = re.findall(r"Expected a (?:<class '(\w+)'>|typing.Literal\[(.*)\])", message)
    if not (keys and value and kinds):
        message = re.sub(r'Parser key "([^"]+)"', r"--\1", message)
        return AnySatError(_dashed(" ".join(message.split())))
    option = _dashed("--" + ".".join(keys))
    choices = [choice for _, listed in kinds for choice in re.findall(r"'([^']+)'", listed)]
    expected = [_KINDS.get(kind, kind) for kind, _ in kinds if kind]
    if choices and expected in ([], ["null"]):
        return UnknownNameError(option, value[1], choices)
    return RecordError(option, value[1], " or ".join([*choices, *expected]))


def _dashed(text: str) -> str:
    text = re.sub(r"\s+\(default: (\[\]|null)\)", "", text)  # `null` and `[]` tell nothing
    return re.sub(r"--[\w.]+", lambda option: option.group().replace("_", "-"), text)


def _parse(parser: Any, config: type[Any], words: Sequence[str]) -> Any:
    """Return the config for the typed words. If it has a `starting_point`, that provides the options not typed."""
    fields = dataclasses.fields(config)
    switches = {name for name, kind, _ in _options(config) if kind is bool}
    lists = {name for name, kind, _ in _options(config) if _is_list(kind)}
    typed = _ordered([_normal(word, words[place + 1 : place + 2], switches) for place, word in enumerate(words)])
    typed = _bracketed(typed, lists)
    parsed = parser.parse_args(typed)
    if hasattr(config, "starting_point"):
        begun = config.starting_point(parsed.as_dict())
        known = set(parser.get_defaults().keys())
        parser.set_defaults({name: value for name, value in _leaves(begun, known).items() if name in known})
        parsed = parser.instantiate(parser.parse_args(typed))  # its groups of options are configs, too
    values = dict(parsed) if hasattr(config, "starting_point") else parsed.as_dict()
    for field in fields:
        required = "positional" in field.metadata and not field.metadata.get("optional")
        if required and not values.get(field.name):
            expected = field.metadata.get("expected", "a value")
            raise RecordError(field.metadata["positional"], values.get(field.name), expected)
    for field in fields:
        if field.name in _WRITTEN and isinstance(values.get(field.name), str):
            _check_on_disk(field.metadata.get("positional", f"--{field.name}"), values[field.name])
    names = {field.name for field in fields}
    return config(**{name: value for name, value in values.items() if name in names})


def _check_on_disk(option: str, place: str) -> None:
    """Check that results are written to a local path: an address would become a folder of that name.

    Raises:
        InputError: The path is an address.
    """
    from anysat.geo.read.addresses import is_remote

    if is_remote(place):
        raise InputError(
            option, "a local path", repr(place),
            "results cannot be written to an address: give a local path and copy the result afterwards, or give the "
            "folder where the bucket is mounted",
        )  # fmt: skip


def _normal(word: str, following: Sequence[str], switches: set[str]) -> str:
    """Return a word as the parser expects it: with underscores, and `=true` for a switch without a value."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    name = "--" + name[2:].replace("-", "_")
    if name[2:] in switches and not equals and not (following and following[0].lower() in ("true", "false")):
        return f"{name}=true"
    return name + equals + value


def _ordered(words: Sequence[str]) -> list[str]:
    """Put options first, in order and joined to their values, then other words, which argparse needs together.

    Options whose value was forgotten come last, so that they do not take another word as their value.
    """
    options: list[str] = []
    others: list[str] = []
    without: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            others.append(word)
            continue
        takes_value = word.startswith("--") and "=" not in word and word not in _ALONE
        if takes_value and rest and (not rest[0].startswith("-") or _NEGATIVE.match(rest[0])):
            word = f"{word}={rest.pop(0)}"
        (without if takes_value and "=" not in word else options).append(word)
    return options + others + without


def _options(config: type[Any], prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield dotted name, type and metadata of every option of a config."""
    kinds = get_type_hints(config)
    for field in dataclasses.fields(config):
        kind = kinds[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _options(kind, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, kind, field.metadata


def _is_list(kind: Any) -> bool:
    """Whether an option takes a list of plain values."""
    return any(get_origin(part) in (list, tuple) and not dataclasses.is_dataclass(get_args(part)[0])
               for part in (kind, *get_args(kind)))  # fmt: skip


def _bracketed(words: Sequence[str], lists: Collection[str]) -> list[str]:
    """Put brackets around values of options that take lists, if they were typed without."""
    found: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        is_list = equals and name.startswith("--") and name[2:] in lists
        found.append(f"{name}={_as_list(value)}" if is_list else word)
    return found


def _as_list(value: str) -> str:
    """Return a value as a YAML list, unless it is one, or null."""
    return value if value.lstrip().startswith(("[", "- ")) or value in ("", "null") else f"[{value}]"


def _listed(options: Any, lists: Collection[str], prefix: str = "") -> Any:
    """Turn a single value into a list for options from a file that take lists."""
    if type(options) is dict:
        return {key: _listed(value, lists, f"{prefix}.{key}" if prefix else str(key)) for key, value in options.items()}
    return [options] if prefix in lists and isinstance(options, str | float | int) else options


def _leaves(values: Any, options: Collection[str], prefix: str = "") -> dict[str, Any]:
    """Return options by their dotted names. Lists stay whole, and so does a table that is one option."""
    if not isinstance(values, dict) or prefix in options:
        return {prefix: values}
    return {
        name: leaf
        for key, value in values.items()
        for name, leaf in _leaves(value, options, f"{prefix}.{key}" if prefix else key).items()
    }


def _overview(words: Sequence[str]) -> int:
    """Print all commands: on request, or after a mistake."""
    groups = {command.split()[0] for command in COMMANDS if " " in command}
    named = words[1:] if words and words[0] in groups else words
    asked = not named or named[0] in ("-h", "--help")
    out = sys.stdout if asked else sys.stderr
    if not asked:
        name = " ".join(words[: 1 + len(words) - len(named)])
        print(f"anysat: {UnknownNameError('command', name, COMMANDS)}", file=out)
    print(f"usage: anysat COMMAND …   (anysat {__version__})\n", file=out)
    for command, (module_name, config_name, _) in COMMANDS.items():
        config = getattr(import_module(module_name), config_name)
        print(f"  {command:18} {(config.__doc__ or '').strip().splitlines()[0]}", file=out)
    print("\nRun `anysat COMMAND --help` for the options of a command.", file=out)
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
