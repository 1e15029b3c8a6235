"""An id reaches an image below the folder and nothing else; thumbnails are kept within a bound."""

import os
import threading

import PIL.Image
import pytest

from export.browse import pictures
from export.browse.pictures import Folder, Missing, Thumbnails
from export.results import name_finder


@pytest.fixture
def folder(tmp_path):
    """A folder of images with what must not be reached beside it and in it."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for number in range(4):
        PIL.Image.new("RGB", (300, 200), (9, 60 * number, 9)).save(root / f"sub/{number}.png")
    (tmp_path / "secret.png").write_bytes((root / "sub/0.png").read_bytes())
    (tmp_path / "rooted").mkdir()
    (tmp_path / "rooted/secret.png").write_bytes((root / "sub/0.png").read_bytes())
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "outside").symlink_to(tmp_path)
    (root / "in.png").symlink_to("sub/1.png")
    (root / "loop.png").symlink_to("loop.png")
    (root / "text.png").write_text("<script>")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png", "../rooted/secret.png", "out.png", "outside/secret.png", "loop.png", "sub",
        "/etc/passwd", "pipe.png", "", ".", "none.png", "text.png", "sub/0.png\0", "x" * 5000,
        "sub/../../secret.png", "outside/root/sub/../../secret.png",
    ],
)  # fmt: skip
def test_nothing_else_is_reached(folder, name):
    with pytest.raises(Missing):
        Folder(folder).open(name)


def test_images_below_are(folder, tmp_path):
    by_link = tmp_path / "link"
    by_link.symlink_to(folder)
    for name in ("sub/2.png", "in.png", "sub/../sub/2.png"):
        file, kind = Folder(by_link).open(name)
        with file:
            assert kind == "image/png"
            assert file.read(4) == b"\x89PNG"


def test_a_prefix_of_ids_opens_no_other_file(folder):
    inputs = [{"folder": str(folder), "id_prefix": "phone/"}, {"folder": "/photos"}]
    prefixed = Folder(folder, name_finder(inputs, folder))
    file, _ = prefixed.open("phone/sub/2.png")
    file.close()
    # The last is the id of another image, in the other folder.
    for name in ("phone//etc/passwd", "phone/../secret.png", "phone/phone/sub/2.png", "sub/2.png"):
        with pytest.raises(Missing):
            prefixed.open(name)


def test_a_file_that_is_too_large(folder, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_FILE_BYTES", 10)
    with pytest.raises(Missing, match="larger than 10 bytes"):
        Folder(folder).open("sub/0.png")


def test_a_changed_file_has_a_new_thumbnail(folder, tmp_path):
    small = Thumbnails(Folder(folder), tmp_path / "cache", 2**20)
    before = small.of("sub/0.png")
    PIL.Image.new("RGB", (10, 20), (200, 0, 0)).save(folder / "new.png")
    (folder / "new.png").replace(folder / "sub/0.png")
    assert small.of("sub/0.png") != before
    assert len([*(tmp_path / "cache").iterdir()]) == 2


def test_the_oldest_thumbnails_go_first(folder, tmp_path):
    cache = tmp_path / "cache"
    small = Thumbnails(Folder(folder), cache, 2**20)
    sizes = [len(small.of(f"sub/{number}.png")) for number in range(4)]
    (cache / "others").write_text("stays")
    # Another process reads the same folder later, and has room for two.
    small = Thumbnails(Folder(folder), cache, sizes[0] + sizes[3])
    for number in (0, 1, 0, 2):
        small.of(f"sub/{number}.png")
    kept = [path for path in cache.iterdir() if path.suffix == ".thumb"]
    assert sum(path.stat().st_size for path in kept) <= sizes[0] + sizes[3]
    assert (cache / "others").exists()
    names = {path.name for path in kept}
    small.of("sub/0.png")
    assert {path.name for path in cache.iterdir() if path.suffix == ".thumb"} == names


def test_a_full_disk_and_many_threads(folder, tmp_path, monkeypatch):
    small = Thumbnails(Folder(folder), tmp_path / "cache", 2000)
    found = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(small.of(f"sub/{n % 4}.png")))
        for n in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 24 and len(set(found)) == 4

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    PIL.Image.new("RGB", (30, 20)).save(folder / "sub/9.png")
    assert small.of("sub/9.png").startswith(b"\xff\xd8")


def test_large_images_are_decoded_one_at_a_time(folder, tmp_path, monkeypatch):
    PIL.Image.new("RGB", (9, 9)).save(folder / "few.png")
    (folder / "cut.png").write_bytes((folder / "few.png").read_bytes()[:12])
    monkeypatch.setattr(pictures.decoding, "LARGE_PIXELS", 81)
    alone, made = [], pictures.make_small

    def note(name, contents):
        alone.append((name, pictures._LARGE.locked()))
        return made(name, contents)

    monkeypatch.setattr(pictures, "make_small", note)
    small = Thumbnails(Folder(folder), tmp_path / "cache", 2**20)
    for name in ("sub/0.png", "few.png"):
        small.of(name)
    # Whose size is not known may be large.
    with pytest.raises(Missing):
        small.of("cut.png")
    assert alone == [("sub/0.png", True), ("few.png", False), ("cut.png", True)]
    assert not pictures._LARGE.locked()


def test_a_broken_image_says_why(folder, tmp_path):
    whole = (folder / "sub/0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Missing, match="cut.png: broken or cut short"):
        Thumbnails(Folder(folder), tmp_path / "cache", 2**20).of("cut.png")
