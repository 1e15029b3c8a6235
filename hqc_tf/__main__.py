"""Lists the commands: `python -m hqc_tf`."""

import pathlib

from hqc_tf import commands

if __name__ == "__main__":
    commands.list_commands("hqc_tf", pathlib.Path(__file__).parent)
