"""What a shell completes the values of options to."""

from collections.abc import Callable, Sequence
from typing import Any

import typer

SPLIT_NAMES = ("train", "val", "test", "none")
Words = Callable[[str], list[str]]  # what a shell may complete the beginning of a word to


def complete(words: Sequence[str]) -> Words:
    """The completion of an option's value in a shell, from the words that it can be.

    >>> complete(["train", "val", "test"])("t")
    ['train', 'test']
    """

    def completion(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return completion


def complete_teacher(incomplete: str) -> list[str]:
    """The completion of a teacher's name.

    >>> complete_teacher("uni")
    ['uni', 'uni2']
    """
    from ..teachers.registry import list_teachers

    return complete([spec.name for spec in list_teachers()])(incomplete)


def one_of(help: str, words: Sequence[str]) -> Any:
    """An option whose value is one of some words, which a shell completes.

    Args:
        help: what it means.
        words: what the value can be.
    """
    return typer.Option(help=help, autocompletion=complete(words))


def teacher_name(help: str) -> Any:
    """An option whose value is the name of a teacher, which a shell completes; `help` says what it means."""
    return typer.Option(help=help, metavar="NAME", autocompletion=complete_teacher)


def optional(help: str, metavar: str | None = None, words: Sequence[str] = (), least: int | None = None) -> Any:
    """An option of which the help says what is done without it; its default None is not printed.

    Args:
        help: what it means.
        metavar: name of its value in the help.
        words: that a shell completes its value to.
        least: the smallest number that it takes.
    """
    return typer.Option(
        help=help, metavar=metavar, min=least, autocompletion=complete(words) if words else None, show_default=False
    )
