"""Lists the commands: `python -m export`."""

import pathlib

from hqc_tf import commands

if __name__ == "__main__":
    commands.list_commands("export", pathlib.Path(__file__).parent)
