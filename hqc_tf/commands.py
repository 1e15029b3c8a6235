"""Runs a command: flags in, one-line errors and status out, and the help of its flags by theme."""

import shutil
import sys
import textwrap

from absl import app, flags, logging

from hqc_tf import config
from hqc_tf.errors import UserError, printable

OWN = "this command"
_WIDEST = 100


# Where the texts of flags begin; a longer name has a line of its own.
_COLUMN = 26


def run(main):
    """Runs a command: flags, then `main(arguments)`; what a person can mend is a line, status 2."""

    def parse(argv):
        define(config.themes())
        try:
            return config.read_flags(flags.FLAGS, argv)
        except UserError as error:
            return _stop(f"{error} (--helpshort lists the flags)")

    def guarded(argv):
        logging.set_verbosity(logging.ERROR)
        # What TensorFlow logs as an error it raises as well, or it is none of the user's.
        logging.logging.getLogger("tensorflow").setLevel("CRITICAL")
        # A name may be no UTF-8, which a terminal's encoding cannot show.
        sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return main(argv[1:])
        except UserError as error:
            return _stop(error)
        except OSError as error:
            if error.filename is None:
                raise
            return _stop(f"{error.filename}: {error.strerror}; mend that or name another")

    app.run(guarded, flags_parser=parse)


def _stop(message):
    # A name in it may hold what moves the cursor or colours the terminal.
    print("error:", printable(" ".join(str(message).split())), file=sys.stderr)
    sys.exit(2)


class HelpFlag(flags.BooleanFlag):
    """A flag that ends the command with its help, status 0.

    Args:
      name, short_name: of the flag.
      themes: name of a setting -> theme that it stands under.
    """

    def __init__(self, name, short_name, themes):
        # absl's own of the same name, whose list is by letters, is replaced.
        super().__init__(name, False, "show this help", short_name, allow_override=True)
        self._themes = themes

    def parse(self, argument):
        if self._parse(argument):
            groups = {OWN: flags.FLAGS.get_flags_for_module(sys.argv[0])}
            for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
                if flag not in groups[OWN]:
                    groups.setdefault(self._themes.get(flag.name, OWN), []).append(flag)
            width = min(shutil.get_terminal_size().columns, _WIDEST)
            print(describe(sys.modules["__main__"].__doc__, groups, width))
            sys.exit(0)


def define(themes, flag_values=flags.FLAGS):
    """Makes --help, -? and --helpshort; to be called when absl has made its own."""
    for name, short_name in (("help", "?"), ("helpshort", None)):
        flags.DEFINE_flag(HelpFlag(name, short_name, themes), flag_values)


def describe(about, groups, width):
    """The help of a command.

    Args:
      about: its docstring.
      groups: theme -> absl's flags, in the order in which they stand.
      width: of a line, in characters.
    """
    parts = [about.strip()] if about else []
    for theme, some in groups.items():
        if some:
            parts.append("\n".join([f"{theme}:", *(_entry(flag, width) for flag in some)]))
    parts.append("--flagfile=FILE takes flags from a file, one a line; --helpfull lists all flags.")
    return "\n\n".join(parts)


def _entry(flag, width):
    name = f"  --{'[no]' if flag.boolean else ''}{flag.name}"
    lines = textwrap.wrap(
        _explain(flag),
        max(width, 2 * _COLUMN),
        initial_indent=" " * _COLUMN,
        subsequent_indent=" " * _COLUMN,
        break_long_words=False,
        break_on_hyphens=False,
    )
    if len(name) < _COLUMN - 1:
        lines[0] = name + lines[0][len(name) :]
        name = None
    return "\n".join([name, *lines] if name else lines)


def _explain(flag):
    """The flag's text, what it takes, and what it is when it is not given."""
    text, said = flag.help, []
    if isinstance(flag, flags.EnumFlag):
        choices = flag.parser.enum_values
        text = text.removeprefix(f"<{'|'.join(choices)}>: ")
        said.append(f"one of {', '.join(choices)}")
    if any(not validator.checker(None) for validator in flag.validators):
        said.append("required")
    elif flag.default not in (None, ""):
        said.append(f"default {str(flag.default).lower() if flag.boolean else flag.default}")
    return f"{text} ({'; '.join(said)})" if said else text
