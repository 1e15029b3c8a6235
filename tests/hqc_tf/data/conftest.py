import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest


@pytest.fixture(scope="session")
def photo(photos):
    """A real image enlarged to 31x44, in color: uint8 [H, W, 3]."""
    gray = PIL.Image.open(sorted(photos.rglob("*.png"))[0]).resize((44, 31), PIL.Image.BICUBIC)
    return np.asarray(PIL.ImageOps.colorize(gray, (20, 0, 60), (255, 240, 180)))
