"""``FlagParser``: the command line of every command, and the settings files that ``--config`` names.

Files are read first, a later one wins over an earlier one, and the command line wins over all. A value from a file
counts as given. Mistakes are ``UserError``: one line.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NoReturn

from megatron.ltd.errors import UserError
from megatron.ltd.flags.files import Setting, read_settings
from megatron.ltd.flags.unknown import Explain, about_unknown


class FlagParser(argparse.ArgumentParser):
    """argparse with whole flag names only, settings files, and errors of one line without the list of all flags."""

    def __init__(
        self,
        description: str | None,
        others: Callable[[], Mapping[str, argparse.Action]] | None = None,
        explain: Explain = lambda name: None,
    ) -> None:
        """``others``: the flags of another program, which files may set too; see ``other_words``.

        ``explain``: what to say about a flag of another program that is none of these.
        """
        super().__init__(
            usage="%(prog)s [flags]",
            description=description,
            allow_abbrev=False,
            formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=44, width=120),
        )
        self.add_argument(
            "--config",
            action="extend",
            nargs="+",
            default=argparse.SUPPRESS,
            metavar="FILE",
            help="read flags from YAML files (num-layers: 24); a later file and then the command line win",
        )
        self.from_files: Mapping[str, Setting] = {}
        """What the files set and the command line does not, by the names of the fields."""
        self.other_words: list[str] = []
        """What the files, and not the command line, set of the other program's flags, as words for its command line."""
        self._others = others
        self._explain = explain

    @property
    def flags(self) -> dict[str, argparse.Action]:
        """All flags that a file may set, by their spelling."""
        actions = self._option_string_actions
        return {name: action for name, action in actions.items() if name not in ("-h", "--help", "--config")}

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The values of the flags. Raises ``UserError`` that names the flag; all unknown flags are named at once."""
        values, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(self._about_unknown(unknown))
        return values

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """The values of the flags, from the command line and from files, and the words that are not ours."""
        args = sys.argv[1:] if args is None else list(args)
        for word in args:
            if re.fullmatch(r"--[\w-]+=--", word):  # argparse would drop the value
                self.error(f"{word}: -- is not a value; give another one")
        values, unknown = super().parse_known_args(args, namespace)
        typed = {word.partition("=")[0] for word in unknown}
        if hasattr(values, "config"):
            others = self._others() if self._others is not None else {}
            settings, words = read_settings(values.config, self.flags, others)
            given = {action.dest for spelling, action in others.items() if spelling in typed}
            self.other_words = [word for name, found in words.items() if name not in given for word in found]
            self.from_files = {name: found for name, found in settings.items() if not hasattr(values, name)}
            for name, setting in self.from_files.items():
                setattr(values, name, setting.value)
            del values.config
        return values, unknown

    def error(self, message: str) -> NoReturn:
        """Raise argparse's ``message`` as a ``UserError``."""
        message = re.sub(
            r"ignored explicit argument (.*)", r"\1 is given, and a switch takes no value; drop it", message
        )
        raise UserError(message.removeprefix("argument "))

    def with_origin(self, error: UserError) -> UserError:
        """The error, and where a file sets the first flag that it names."""
        named = re.search(r"--[\w-]+", str(error))
        action = self.flags.get(named[0]) if named else None
        if named is None or action is None or action.dest not in self.from_files:
            return error
        return UserError(f"{error} ({named[0]} is set in {self.from_files[action.dest].where})")

    def _about_unknown(self, words: list[str]) -> str:
        flags = [word.partition("=")[0] for word in words if re.match(r"--?[^\W\d]", word)]
        if flags and flags[0] in self.flags:
            return "--: flags after it are not read; leave it out"
        if not flags:
            stray = " ".join(" ".join(words).split())
            return f"{stray}: no flag takes this value; --help lists the flags and what each takes"
        return about_unknown(flags, self.flags, "flag", "--help lists them all", self._explain)
