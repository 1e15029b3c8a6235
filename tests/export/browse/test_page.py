"""The pages show any name, and the groups of duplicates."""

import json

import pytest

from export.browse import page
from tests.export.browse.conftest import NAMES


def test_samples_lead_to_their_images(client):
    text = client.get("/").text
    assert 'href="/?id=100%25.png"' in text
    assert "Search 61 images" in text


def test_folders_that_ids_begin_with(browsed):
    found = page.find_folders(browsed)
    assert found == sorted({f"{name}/" for name in ("é", *(f"class{n}" for n in range(10)))})


@pytest.fixture
def groups(tmp_path):
    lines = [{"ids": [NAMES[0], NAMES[1]], "largest": NAMES[1], "sides": [[4, 3], [8, 6]],
              "bytes": [900, 2000]}]  # fmt: skip
    lines += [{"ids": ["class1/\udcff.png"] + [f"{n}.png"] * 30} for n in range(45)]
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_groups_side_by_side(make_client, groups):
    with make_client(duplicates=groups) as client:
        first = client.get("/duplicates").text
        assert first.count("<section") == 20
        assert "8 × 6, 2.0 kB, <b>the largest</b>" in first.replace("&#215;", "×")
        assert "&lt;i&gt;.png" in first and "<i>.png" not in first
        assert 'href="/?id=%C3%A9%2Fa%20b%2Bc%2520%26d.png"' in first
        assert 'src="/api/thumbnail/class1%2F%FF.png"' in first
        assert "And 7 more." in first
        assert 'href="/duplicates?page=2"' in first
        last = client.get("/duplicates?page=3").text
        assert last.count("<section") == 6
        assert "Page 3 of 3" in last
        for odd in ("0", "-1", "9", "x", "", "9" * 99):
            assert client.get(f"/duplicates?page={odd}").status_code == 200
        assert '<a href="/duplicates">' in client.get("/").text


def test_without_groups(client, make_client, tmp_path):
    assert "No duplicates were looked for" in client.get("/duplicates").text
    (tmp_path / "empty.jsonl").write_text("")
    with make_client(duplicates=str(tmp_path / "empty.jsonl")) as other:
        assert "No image is there twice." in other.get("/duplicates").text


@pytest.mark.parametrize("text", ["{}\n", "no json\n", '{"ids": 3}\n'])
def test_other_files_are_refused(make_client, tmp_path, text):
    (tmp_path / "g.jsonl").write_text(text)
    with pytest.raises(ValueError, match="g.jsonl: line 1: "):
        make_client(duplicates=str(tmp_path / "g.jsonl"))
    with pytest.raises(ValueError, match="none: cannot be read .*; write it with export.dupl"):
        make_client(duplicates=str(tmp_path / "none"))
