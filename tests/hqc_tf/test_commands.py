"""What --help prints: one entry a flag, with its choices and default, within the line."""

import pytest
from absl import flags

from hqc_tf import commands


@pytest.fixture
def listed():
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "folder of this run", values, required=True)
    flags.DEFINE_enum("kind", "near", ["near", "far"], "how far", values)
    flags.DEFINE_bool("fast", True, "whether it hurries", values)
    flags.DEFINE_integer("most", None, "of them", lower_bound=1, flag_values=values)
    flags.DEFINE_string("a_name_beyond_the_column", "", "its text is on a line below", values)
    return [
        values[name] for name in ("workdir", "kind", "fast", "most", "a_name_beyond_the_column")
    ]


def test_an_entry_has_choices_and_default(listed):
    groups = {commands.OWN: listed[:2], "speed": listed[2:]}
    assert commands.describe("Does things.", groups, 80).splitlines() == [
        "Does things.",
        "",
        "this command:",
        "  --workdir               folder of this run (required)",
        "  --kind                  how far (one of near, far; default near)",
        "",
        "speed:",
        "  --[no]fast              whether it hurries (default true)",
        "  --most                  of them",
        "  --a_name_beyond_the_column",
        "                          its text is on a line below",
        "",
        "--flagfile=FILE takes flags from a file, one a line; --helpfull lists all flags.",
    ]


@pytest.mark.parametrize("width", [60, 100])
def test_long_texts_are_wrapped(width):
    values = flags.FlagValues()
    flags.DEFINE_string("input", "", "long words " * 40, values)
    lines = commands.describe(None, {"a": [values["input"]]}, width).splitlines()
    entry = lines[1:-2]
    assert max(map(len, entry)) <= width
    column = len("  --input  ")
    assert {line[:column] for line in entry[1:]} == {" " * column}
    assert " ".join(" ".join(entry).split()) == "--input " + ("long words " * 40).strip()
