"""Flags of the command line: those that several commands have, and those derived from the fields of
dataclasses."""

from __future__ import annotations

import functools
import inspect
import json
import typing
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from typing import Annotated, Any

import typer

from mmdiff.cli.inputs import refuse
from mmdiff.config import DecodingConfig, help_of
from mmdiff.serve.options import ServerOptions

Model = Annotated[str, typer.Option("--model", help=help_of(ServerOptions, "model"))]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per image.")]
ShowSteps = Annotated[
    bool, typer.Option("--show-steps", help="Show the answer while it is denoised.")
]
Device = Annotated[str | None, typer.Option(help=help_of(ServerOptions, "device"))]
Dtype = Annotated[str, typer.Option(help=help_of(ServerOptions, "dtype"))]
Seed = Annotated[int, typer.Option(help="For a temperature above 0.")]
MaxNumSeqs = Annotated[int, typer.Option(min=1, max=4096, help="Answers in the making at once.")]
OnRay = Annotated[
    bool, typer.Option("--ray", help="On the cluster at RAY_ADDRESS, or one started here.")
]
MinReplicas = Annotated[
    int | None, typer.Option(min=1, help="Copies of the model with --ray, at least (default: 1).")
]
MaxReplicas = Annotated[
    int | None, typer.Option(min=1, help="And at most (default: as many as at least).")
]
SpeechModel = Annotated[str | None, typer.Option(help=help_of(ServerOptions, "speech_model"))]
AudioAs = Annotated[
    str, typer.Option(help="transcript: what is said, as text; or embeddings: the audio itself.")
]
Quantize = Annotated[str | None, typer.Option(help=help_of(ServerOptions, "quantize"))]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Any decoding setting, such as rule=wino; may be given again.",
    ),
]


@dataclass(frozen=True)
class FlagGroup:
    """Flags that become one value: their parameters, and the value of what is given."""

    parameters: tuple[inspect.Parameter, ...]
    value: Callable[[dict[str, Any]], Any]


def flags_of(options: Any) -> FlagGroup:
    """Of the fields of a dataclass that were made by `flag`; the value is a dataclass."""
    hints = typing.get_type_hints(options)
    flagged = {_flag_name(each): each for each in fields(options) if "flag" in each.metadata}
    parameters = [
        _parameter(name, each, hints[each.name], each.default) for name, each in flagged.items()
    ]

    def value(given: dict[str, Any]) -> Any:
        values: dict[str, Any] = {}
        for name, each in flagged.items():
            of_field = given[name]
            values[each.name] = tuple(of_field or ()) if each.default == () else of_field
        return options(**values)

    return FlagGroup(tuple(parameters), value)


def decoding_flags(*names: str, any_setting: bool = True) -> FlagGroup:
    """Flags of DecodingConfig; the value has those that are given, by name.

    Args:
        any_setting: whether --set NAME=VALUE is one of them.
    """
    hints = typing.get_type_hints(DecodingConfig)
    by_name = {each.name: each for each in fields(DecodingConfig)}
    parameters = [_parameter(name, by_name[name], hints[name] | None, None) for name in names]
    if any_setting:
        parameters.append(_keyword("settings", Settings, None))

    def value(given: dict[str, Any]) -> dict[str, Any]:
        pairs = _parsed_settings(given.pop("settings", None))
        flags = {name: setting for name, setting in given.items() if setting is not None}
        return flags | pairs

    return FlagGroup(tuple(parameters), value)


FLAGGED_SETTINGS = tuple(each.name for each in fields(DecodingConfig) if "flag" in each.metadata)


def with_flags(**groups: FlagGroup) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a typer command of a function: the flags of a group stand in the place of the
    parameter of its name."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for each in inspect.signature(command).parameters.values():
            if each.name in groups:
                parameters += groups[each.name].parameters
            else:
                parameters.append(_keyword(each.name, hints[each.name], each.default))

        @functools.wraps(command)
        def run(**given: Any) -> None:
            for name, group in groups.items():
                taken = {each.name: given.pop(each.name) for each in group.parameters}
                given[name] = group.value(taken)
            command(**given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(name: str, each: Field[Any], kind: Any, default: Any) -> inspect.Parameter:
    """A field as the parameter of a typer command."""
    of_field = each.metadata["flag"]
    declared = []
    if default == ():
        kind, default = list[typing.get_args(kind)[0]] | None, None  # type: ignore[misc]
    if kind is bool:
        declared = [f"--{name}"]  # without its opposite
    make: Any = typer.Argument if of_field.argument else typer.Option
    info = make(
        *declared,
        help=of_field.help,
        min=of_field.least,
        max=of_field.most,
        metavar=of_field.metavar,
    )
    return _keyword(name, Annotated[kind, info], default)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _flag_name(each: Field[Any]) -> str:
    return each.metadata["flag"].name or each.name


def _parsed_settings(given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE by name, numbers and none as JSON has them."""
    found: dict[str, Any] = {}
    for each in given or []:
        name, equals, value = each.partition("=")
        if not (name and equals):
            raise refuse(f"--set {each!r} does not fit; give NAME=VALUE, such as rule=wino")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found
