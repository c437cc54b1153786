"""What a person reads when a command cannot do what they asked.

CommandError              base: ends a command; printed without a traceback
├── UserError             the input is wrong: each problem names a field, says what and the mend; exit code 2
└── CommandFailed         the input is right and it did not work; exit code 1
"""

from __future__ import annotations

from collections.abc import Sequence


class CommandError(Exception):
    """Ends a command with `exit_code`; `lines` go to stderr, one error each."""

    exit_code = 1

    @property
    def lines(self) -> tuple[str, ...]:
        """What to print, without the leading ``error:``."""
        return (str(self),)


class UserError(CommandError):
    """The input is wrong.

    Attributes:
        problems: ``(field, what is wrong; what mends it)`` of each thing wrong, in the order of the input.
    """

    exit_code = 2

    def __init__(self, field: str, message: str, *more: tuple[str, str]) -> None:
        self.problems: tuple[tuple[str, str], ...] = ((field, message), *more)
        super().__init__("; ".join(self.lines))

    @classmethod
    def of(cls, problems: Sequence[tuple[str, str]]) -> UserError:
        """One error for several problems; at least one."""
        (field, message), *more = problems
        return cls(field, message, *more)

    @property
    def lines(self) -> tuple[str, ...]:
        """``field: message`` of each problem."""
        return tuple(f"{field}: {message}" for field, message in self.problems)


class CommandFailed(CommandError):
    """The input is right and it did not work."""
