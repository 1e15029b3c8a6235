"""What tests share: real images, trained runs, servers, damage."""

import pathlib

ROOT = pathlib.Path(__file__).parents[2]
REFERENCE = ROOT / "tests/reference"
# Data sets laid beside a clone for its tests; users have none of it.
SHARED = ROOT.parent / "shared"
