"""What the commands share: options, one-line errors, and how they find the log and the database."""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from schemas.errors import EXIT_OPERATOR, OperatorError

if TYPE_CHECKING:
    from schemas.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

DataDir = Annotated[Path | None, typer.Option(help="Data folder of `sluice up`. [SLUICE_DATA_DIR]")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(min=1, help="Maximum number of rows.")]
Parent = Annotated[int, typer.Option(hidden=True, help="End together with this process.")]


UsageError: Any = typer.BadParameter.__mro__[1]
"""Typer's exception for wrong options and arguments, which it does not export."""


class OneLine(TyperGroup):
    """A command group that reports usage errors in one line; Typer prints four."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command, and exit as Typer does."""
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except UsageError as err:
            text = err.format_message()
            if "\n" not in text:  # a text of several lines is the help of a group without a command
                place = err.ctx.command_path if err.ctx else "sluice"
                text = f"sluice: {text}{'' if text.endswith(('.', '?')) else '.'} See `{place} --help`"
            sys.stderr.write(f"{text}\n")
            code = EXIT_OPERATOR
        except typer.Abort:
            sys.stderr.write("sluice: stopped, nothing was changed\n")
            code = 1
        if not standalone_mode:
            return code
        sys.exit(code if isinstance(code, int) else 0)


def answerable(function: F) -> F:
    """Report operator errors as one line on standard error, with exit code 2."""

    @wraps(function)
    def command(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as err:
            from connectors.runtime.errors import OPERATOR_ERRORS, one_line  # noqa: PLC0415 - loads psycopg

            if not isinstance(err, OPERATOR_ERRORS):
                raise
            sys.stderr.write(f"sluice: {as_given(one_line(err), kwargs)}\n")
            raise typer.Exit(EXIT_OPERATOR) from err

    return command  # type: ignore[return-value]  # wraps keeps the signature that typer reads


OPTION_OF = {
    "SLUICE_RELAYS": ("relay", "--relay"),
    "SLUICE_LABELERS": ("labeler", "--labeler"),
    "SLUICE_PLC": ("plc", "--plc"),
    "SLUICE_KAFKA_BOOTSTRAP": ("bootstrap", "--bootstrap"),
    "SLUICE_DATABASE": ("database", "--database"),
    "SLUICE_DATA_DIR": ("data_dir", "--data-dir"),
}
"""Settings that are also options: variable → (parameter of the command, option)."""


def as_given(line: str, given: Mapping[str, object]) -> str:
    """Replace a variable in an error by the option, if the operator gave the option."""
    for variable, (parameter, option) in OPTION_OF.items():
        if given.get(parameter):
            line = re.sub(rf"\b{variable}\b", option, line)
    return line


def one_of(nothing: str, **chosen: object) -> None:
    """Raise OperatorError unless exactly one of these options is given. `nothing`: the error if there is none."""
    used = [name if name[0].isupper() else f"--{name}" for name, value in chosen.items() if value]
    if not used:
        raise OperatorError(nothing)
    if len(used) > 1:
        raise OperatorError(f"give only one of {' and '.join(used)}")


def all_dids(texts: Sequence[str], *, also: str = "") -> None:
    """Raise OperatorError for the first text that is not a DID. `also`: added to the error."""
    from protocol.syntax import is_did  # noqa: PLC0415 - loads what `sluice settings` has no need of

    wrong = next((text for text in texts if not is_did(text)), None)
    if wrong is not None:
        raise OperatorError(f"{wrong[:100]!r} is not a DID{also}; write it as did:plc:… or did:web:HOST")


def unreadable(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be read."""
    return "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or str(error))


def load(**overrides: object) -> "Settings":
    """`schemas.settings.load`. Raises SettingsError."""
    from schemas import settings  # noqa: PLC0415 - loads pydantic, which `sluice help` has no need of

    return settings.load(**overrides)


def unless_set(**defaults: object) -> dict[str, object]:
    """The defaults of settings whose variable is not set."""
    from schemas.settings import PREFIX  # noqa: PLC0415 - as above

    given = {name.upper() for name in os.environ}
    return {name: value for name, value in defaults.items() if PREFIX + name.upper() not in given}


def located(data_dir: Path | None, *needed: str) -> "Settings":
    """The settings. Missing addresses of log and database come from the `sluice up` that runs in the data folder.

    `needed`: the settings that the command needs. Raises OperatorError if one of them is missing.
    """
    from control.process_status import running_mirror  # noqa: PLC0415 - loads what `sluice settings` has no need of

    settings = load(data_dir=data_dir)
    if all(getattr(settings, name) for name in needed):
        return settings
    if found := running_mirror(settings.data_dir):
        folder, running = found
        places = {"kafka_bootstrap": running.bootstrap, "database": running.database}
        rest = {
            "kafka_topic_prefix": running.topic_prefix,
            "kafka_partitions": running.partitions,
            "kafka_replication": running.replication,
            "relays": running.relays,
            "labelers": running.labelers,
            "plc": running.plc or settings.plc,
            "handle_dns": running.dns,
            "allow_private_hosts": running.allow_private_hosts,
            "shards": running.shards,
            "serve_listen": running.serve or settings.serve_listen,
        }
        return settings.model_copy(
            update=unless_set(**rest)
            | {"data_dir": folder}
            | {name: place for name, place in places.items() if not getattr(settings, name)}
        )
    missing = next(name for name in needed if not getattr(settings, name))
    raise OperatorError(
        f"SLUICE_{missing.upper()} is not set, and no `sluice up` runs in {settings.data_dir}; set it, or give --data-dir"
    )


def with_database(data_dir: Path | None, *needed: str) -> "Settings":
    """The settings, as `located` finds them. Raises OperatorError also if the database does not answer."""
    from connectors.postgres.connection import check_database  # noqa: PLC0415 - as above

    settings = located(data_dir, "database", *needed)
    check_database(settings)
    return settings
