"""Runs a command: flags, one-line errors and exit status, and --help with flags by theme."""

import argparse
import ast
import atexit
import contextlib
import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from absl import app, flags, logging

from hqc_tf import config
from hqc_tf.errors import UserError, is_disk_full, printable

OWN = "this command"
_MAX_WIDTH_CHARACTERS = 100
# Where the texts of flags begin at the latest; a longer name has a line of its own.
_COLUMN = 26
# What a command reads; of two absl would take the last.
_GIVEN_ONCE = (
    "dataset", "input", "codes", "index", "embeddings", "remove", "images", "queries", "labels",
)  # fmt: skip
_FILE_KINDS = "folder:", "tfrecord:", "features:"
# How lines begin that libraries write on stderr past Python: remarks on a file's bytes, by libjpeg,
# and logs of TensorFlow and XLA but for fatal ones.
_REMARKS = (
    "Corrupt JPEG data|Premature end of JPEG|JPEGLib: |Bogus |Unsupported marker type|Invalid SOS "
    "|Inconsistent progression|Unknown Adobe color|Warning: unknown JFIF|Quantization table "
    r"|WARNING: All log messages before absl|[IWE]\d{4} \d\d:|\d{4}-\d\d-\d\d [\d:.]+: [IWE] "
)
_FILTER = """
import re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
is_remark = re.compile(sys.argv[1].encode()).match
for line in sys.stdin.buffer:
    if not is_remark(line):
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
"""
_END = "--flagfile=FILE takes flags from a file, one a line; --helpfull lists all flags."


def run(main: Callable[[list[str]], object], takes_arguments: bool = False) -> None:
    """Parses the flags and calls `main`; an error that a user can fix is one line and status 2.

    Args:
        main: called with the arguments that are not flags; what it returns is the exit status.
        takes_arguments: whether there may be any; else a word that is no flag is an error.
    """

    def parse(argv):
        define(config.themes())
        try:
            _check_given_once(argv[1:])
            argv = config.read_flags(flags.FLAGS, argv)
            _expand_paths(flags.FLAGS)
            if argv[1:] and not takes_arguments:
                raise UserError(_not_a_flag(argv[1]))
            # A shell has replaced what begins any other word.
            return [_expanded(word) if word.startswith(_FILE_KINDS) else word for word in argv]
        except UserError as error:
            return _stop(f"{error} (--helpshort lists the flags)")

    def guarded(argv):
        logging.set_verbosity(logging.ERROR)
        # What TensorFlow logs as an error it raises as well, or it does not concern the user.
        logging.logging.getLogger("tensorflow").setLevel("CRITICAL")
        _drop_remarks()
        # A file's name may not be UTF-8, and a terminal's encoding cannot show it then.
        sys.stdout.reconfigure(errors="backslashreplace")
        try:
            status = main(argv[1:])
            sys.stdout.flush()
            return status
        except UserError as error:
            return _stop(error)
        except BrokenPipeError:
            # Whoever read the output has enough; what is still buffered has nowhere to go.
            return _discard_stdout()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            if is_disk_full(error):
                _discard_stdout()
                return _stop(f"the disk is full ({error}); free space, and run it again")
            if getattr(error, "filename", None) is None:
                raise
            return _stop(f"{error.filename}: {error.strerror}; fix that or name another")

    # Python has None for a stream that was closed before it started.
    sys.stdout, sys.stderr = (
        stream or open(os.devnull, "w")  # noqa: PTH123, SIM115
        for stream in (sys.stdout, sys.stderr)
    )
    app.run(guarded, flags_parser=parse)


def list_commands(package: str, folder: pathlib.Path) -> None:
    """Prints a line for each command of a package in `folder`, by its docstring; ends with 0 or 2.

    A word on the command line that asks for no help is an error, with status 2.
    """
    wrong = [word for word in sys.argv[1:] if word.lstrip("-") not in ("h", "help", "helpshort")]
    if wrong:
        _stop(f"{wrong[0]}: no flag of this command; write python -m {package}.NAME --FLAG=VALUE")
    paths = {path.stem: path for path in folder.glob("*.py")}
    paths |= {path.parent.name: path for path in folder.glob("*/__main__.py")}
    texts = {name: path.read_text() for name, path in paths.items() if name != "__main__"}
    about = {
        name: ast.get_docstring(ast.parse(text)).partition("\n")[0]
        for name, text in sorted(texts.items())
        if 'if __name__ == "__main__":' in text
    }
    width = max(map(len, about))
    for name, line in about.items():
        # The command itself follows in most.
        print(f"python -m {package}.{name:{width}}  {re.split(r'[:,]? ?`|[.]$', line)[0]}")
    print("\nEach takes --help.")


def _check_given_once(words):
    """UserError where a flag of what is read is given twice, not in a flagfile but by hand."""
    names = [re.match(r"--?(\w+)", word) for word in words[: (*words, "--").index("--")]]
    for name in _GIVEN_ONCE:
        count = sum(bool(found) and found[1] == name for found in names)
        if count > 1:
            raise UserError(
                f"--{name}: given {count} times, and only the last would count; give one: a folder "
                "above all of them, or a pattern; export.index --append joins indexes"
            )


def _expand_paths(values):
    """Replaces ~ and $VARIABLE in the flags, which a shell leaves where a word begins otherwise."""
    for name in values:
        flag = values[name]
        if flag.present and isinstance(flag.value, str):
            flag.value = _expanded(flag.value, f"--{name}=")
        elif flag.present and isinstance(flag.value, list):
            flag.value = [
                _expanded(each, f"--{name}=") if isinstance(each, str) else each
                for each in flag.value
            ]


def _expanded(text, flag=""):
    kind = next((kind for kind in _FILE_KINDS if text.startswith(kind)), "")
    path = text.removeprefix(kind)
    if os.path.lexists(path):
        return text
    path = os.path.expanduser(os.path.expandvars(path))  # noqa: PTH111
    if unset := re.search(r"\$(\w+|\{\w+\})", path):
        raise UserError(
            f"{flag}{text}: the environment has no {unset[0]}; set it, or give the path itself"
        )
    return kind + path


def _drop_remarks():
    """Passes what libraries write on stderr through a process that leaves `_REMARKS` out.

    A thread could not: a library that writes while it holds Python would wait for it for ever.
    """
    # A test may have put something else in its place.
    if sys.stderr is not sys.__stderr__ or sys.stderr.fileno() != 2:
        return
    own = os.dup(2)
    words = [sys.executable, "-S", "-E", "-c", _FILTER, _REMARKS]
    passing = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=own)
    os.dup2(passing.stdin.fileno(), 2)
    passing.stdin.close()
    sys.stderr = open(own, "w", buffering=1, errors="backslashreplace")  # noqa: PTH123, SIM115

    def end():
        os.dup2(own, 2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            passing.wait(1)

    atexit.register(end)


def _not_a_flag(word):
    # Word processors write a dash for two hyphens.
    name = word.lstrip("-\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}")
    if name.partition("=")[0] in flags.FLAGS:
        return f"{word}: not a flag; give --{name}"
    if flag := _flag_of_path(word):
        return f"{word}: not a flag; give {flag}"
    return f"{word}: not a flag; leave it out, and put quotes around a value with blanks"


def _flag_of_path(word):
    """The flag that a folder or file without one was probably meant for; "" of any other word."""
    if not os.path.lexists(word):
        return ""
    if "workdir" in flags.FLAGS and pathlib.Path(word, "flags.txt").exists():
        return f"--workdir={word}"
    name = next((name for name in ("dataset", "input", "images") if name in flags.FLAGS), "")
    kind = "folder:" if pathlib.Path(word).is_dir() else ""
    return name and f"--{name}={kind}{word}"


def _discard_stdout():
    # Streams that stand for it, as in tests, have no descriptor.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stop(message):
    # A name in it may hold characters that move the cursor or color the terminal.
    print("error:", printable(" ".join(str(message).split())), file=sys.stderr)
    sys.exit(2)


class HelpFlag(flags.BooleanFlag):
    """A flag that prints the command's help and ends it with status 0.

    Args:
        name: of the flag.
        short_name: of one letter, or None.
        themes: name of a setting -> theme under which it is listed.
    """

    def __init__(self, name: str, short_name: str | None, themes: Mapping[str, str]):
        # It replaces absl's flag of the same name, whose list is alphabetical.
        super().__init__(name, False, "show this help", short_name, allow_override=True)
        self._themes = themes

    def parse(self, argument):
        if self._parse(argument):
            groups = {OWN: flags.FLAGS.get_flags_for_module(sys.argv[0])}
            for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
                if flag not in groups[OWN]:
                    groups.setdefault(self._themes.get(flag.name, OWN), []).append(flag)
            width = min(shutil.get_terminal_size().columns, _MAX_WIDTH_CHARACTERS)
            print(describe(sys.modules["__main__"].__doc__, groups, width))
            sys.exit(0)


def define(themes: Mapping[str, str], flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines --help, -?, -h and --helpshort, after absl has defined its own."""
    for name, short_name in (("help", "?"), ("h", None), ("helpshort", None)):
        flags.DEFINE_flag(HelpFlag(name, short_name, themes), flag_values)


def describe(about: str | None, groups: Mapping[str, Sequence[flags.Flag]], width: int) -> str:
    """The help text of a command, laid out by argparse.

    Args:
        about: its docstring.
        groups: theme -> its flags, in the order in which they are listed.
        width: of a line, in characters.
    """
    layout = functools.partial(
        argparse.RawDescriptionHelpFormatter, max_help_position=_COLUMN, width=width
    )
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description=about,
        epilog=_END,
        formatter_class=layout,
        add_help=False,
    )
    for theme, some in groups.items():
        group = parser.add_argument_group(theme)
        for flag in some:
            name = f"--{'[no]' if flag.boolean else ''}{flag.name}"
            group.add_argument(name, action="store_true", help=_explain(flag).replace("%", "%%"))
    return parser.format_help().strip()


def _explain(flag):
    """The flag's text, its choices, and its default."""
    text, notes = flag.help, []
    if isinstance(flag, flags.EnumFlag):
        choices = flag.parser.enum_values
        text = text.removeprefix(f"<{'|'.join(choices)}>: ")
        notes.append(f"one of {', '.join(choices)}")
    if any(not validator.checker(None) for validator in flag.validators):
        notes.append("required")
    elif flag.default not in (None, ""):
        notes.append(f"default {str(flag.default).lower() if flag.boolean else flag.default}")
    return f"{text} ({'; '.join(notes)})" if notes else text
