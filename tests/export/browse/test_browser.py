"""The page in a real browser: everything that a person does with it, and every error in words."""

import json
import urllib.parse

import pytest

from hqc_tf.data import decoding
from tests.export.browse.conftest import LINES, NAMES
from tests.support import devtools
from tests.support.browser import LOOK

IDS = "[...document.querySelectorAll('#results a .name')].map(e => e.textContent)"
SETTLED = "!document.body.classList.contains('busy') && "
LOADED = """
Promise.all([...document.images].filter(i => !i.hidden && i.src).map(i => {
  i.loading = "eager";
  return i.complete || new Promise(r => i.onload = i.onerror = r);
}))
"""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with devtools.browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture
def tab(opened, server):
    """The browser at the page; at the end nothing was wrong and nothing was fetched elsewhere."""
    opened.console.clear()
    opened.requests.clear()
    opened.size(1400)
    opened.open(server)
    yield opened
    elsewhere = [one for one in opened.requests if not one.startswith((server, f"blob:{server}"))]
    assert elsewhere == []
    # The browser itself notes an answer that is an error.
    assert [text for text in opened.console if "Failed to load resource" not in str(text)] == []


def error(tab):
    return tab.wait(f"{SETTLED} document.getElementById('error').textContent")


def results(tab, count):
    """The ids of the results, once there are so many."""
    tab.wait(f"{SETTLED} document.querySelectorAll('#results .detail').length == {count}")
    return tab.run(IDS)


def searched(server, **query):
    """What the API finds."""
    import urllib.request

    request = urllib.request.Request(
        f"{server}api/search", json.dumps(query).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["ids"]


def fill(tab, name, value):
    tab.run(
        f"(e => {{ e.value = {json.dumps(value)};"
        "e.dispatchEvent(new Event('change', {bubbles: true})) })"
        f"(document.getElementById('{name}'))"
    )


def give(tab, event, photo):
    """Drops or pastes an image file."""
    names = {"drop": "dataTransfer", "paste": "clipboardData"}
    tab.run(
        f"(() => {{ const data = new DataTransfer();"
        f"data.items.add(new File([new Uint8Array({[*photo]})], 'given.jpg'));"
        f"const event = new {'DragEvent' if event == 'drop' else 'ClipboardEvent'}('{event}',"
        f"{{bubbles: true, cancelable: true, {names[event]}: data}});"
        "document.body.dispatchEvent(event) })()"
    )


@pytest.mark.parametrize("event", ["drop", "paste", "choose"])
@pytest.mark.long
def test_an_image_that_is_given_is_searched(tab, server, photo, tmp_path, event):
    if event == "choose":
        (tmp_path / "given.jpg").write_bytes(photo)
        tab.choose("#file", tmp_path / "given.jpg")
    else:
        give(tab, event, photo)
    found = results(tab, 24)
    query = urllib.parse.parse_qs(tab.run("location.search.slice(1)"))
    assert found == searched(server, embedding=query["embedding"][0], k=24)
    assert tab.run("document.querySelector('#query figcaption').textContent") == "given.jpg"
    assert tab.run("document.querySelector('#query img').src").startswith("blob:")
    # A filter needs no second sending of it.
    fill(tab, "within", "class1/")
    count = len(searched(server, embedding=query["embedding"][0], k=1000, within="class1/"))
    assert all(name.startswith("class1/") for name in results(tab, count))
    tab.open(server.rstrip("/") + tab.run("location.pathname + location.search"))
    assert len(results(tab, count)) == count


def test_clicks_back_forward_and_a_link(tab, server):
    tab.run("document.querySelectorAll('#results a')[3].click()")
    tab.wait("location.search.startsWith('?id=') && document.readyState == 'complete'")
    first = results(tab, 24)
    # Among images of equal codes the query may be anywhere.
    own = tab.run("document.getElementById('wanted').value")
    place, other = next((n, name) for n, name in enumerate(first) if n > 2 and name != own)
    tab.run(f"document.querySelectorAll('#results a')[{place}].click()")
    tab.wait(f"{SETTLED} document.getElementById('wanted').value == {json.dumps(other)}")
    second = results(tab, 24)
    assert second == searched(server, id=other, k=24)
    tab.run("history.back()")
    tab.wait(f"{SETTLED} document.getElementById('wanted').value == {json.dumps(own)}")
    assert results(tab, 24) == first
    tab.run("history.forward()")
    tab.wait(f"{SETTLED} document.getElementById('wanted').value == {json.dumps(other)}")
    assert results(tab, 24) == second


@pytest.mark.parametrize("name", [*NAMES.values(), "class1/\udcff.png"])
def test_any_id_is_found_by_its_address(tab, server, name):
    tab.run(f"document.getElementById('wanted').value = {json.dumps(name)}")
    tab.run("document.getElementById('form').requestSubmit()")
    found = results(tab, 24)
    assert found == searched(server, id=name, k=24)
    tab.call("Page.reload")
    tab.wait("document.readyState == 'complete'")
    assert results(tab, 24) == found
    tab.run(LOADED)
    assert tab.run("[...document.images].every(i => i.naturalWidth > 0)")


def test_an_id_with_a_line_break_stays_the_query(tab, server):
    tab.open(f"{server}?id={urllib.parse.quote(LINES)}")
    results(tab, 24)
    fill(tab, "k", "5")
    assert results(tab, 5) == searched(server, id=LINES, k=5)
    tab.run(LOADED)
    assert tab.run("[...document.images].every(i => i.naturalWidth > 0)")


def test_fields_before_the_first_query_hold_for_it(tab, server):
    name = tab.run(IDS)[3]
    fill(tab, "within", "class1/")
    fill(tab, "k", "3")
    tab.run("document.getElementById('explain').click()")
    tab.run("document.querySelectorAll('#results a')[3].click()")
    assert results(tab, 3) == searched(server, id=name, k=3, within="class1/")
    assert tab.run("document.querySelectorAll('#results svg').length") == 3


def test_enter_in_a_changed_field_is_one_query(tab, server):
    tab.open(f"{server}?id={urllib.parse.quote(NAMES[0])}")
    results(tab, 24)
    before = tab.run("history.length")
    tab.requests.clear()
    tab.run("document.getElementById('k').select()")
    tab.press("7", text="7")
    tab.press("Enter", 13, "\r")
    results(tab, 7)
    assert tab.run("history.length") == before + 1
    assert len([one for one in tab.requests if one.endswith("/api/search")]) == 1


def test_what_each_book_sees_and_how_many(tab, server):
    tab.open(f"{server}?id={urllib.parse.quote(NAMES[0])}")
    results(tab, 24)
    fill(tab, "k", "7")
    results(tab, 7)
    tab.run("document.getElementById('explain').click()")
    tab.wait(f"{SETTLED} document.querySelectorAll('#results svg').length == 7")
    assert tab.run("document.querySelectorAll('#results svg .part').length") == 14
    label = tab.run("document.querySelector('#results svg').getAttribute('aria-label')")
    assert label.startswith("Distance by book: ")
    assert tab.run("location.search").endswith("&k=7&explain=1")


def test_by_keyboard_alone(tab):
    seen = []
    while "wanted" not in seen:
        tab.press("Tab", 9)
        seen.append(tab.run("document.activeElement.id || document.activeElement.textContent"))
    assert seen[0] == "Skip to the images"
    assert "file" in seen
    for letter in NAMES[2]:
        tab.press(letter, text=letter)
    tab.press("Enter", 13, "\r")
    first = results(tab, 24)
    while tab.run("document.activeElement.closest('#results') == null"):
        tab.press("Tab", 9)
    tab.press("ArrowRight", 39)
    tab.press("ArrowRight", 39)
    tab.press("ArrowLeft", 37)
    assert tab.run("document.activeElement.querySelector('.name').textContent") == first[1]
    shown = tab.run("getComputedStyle(document.activeElement).outlineStyle")
    assert shown == "solid"
    tab.press("Enter", 13, "\r")
    tab.wait(f"{SETTLED} document.getElementById('wanted').value == {json.dumps(first[1])}")
    results(tab, 24)


def test_errors_are_in_words(tab, server):
    tab.run("document.getElementById('form').requestSubmit()")
    assert error(tab) == "No image yet: choose one, or type the id of one."
    give(tab, "drop", b"this is no image")
    assert error(tab) == f"No result: not searched: no {decoding.NAMES} image"
    give(tab, "drop", b"\x89PNG\r\n\x1a\n")
    tab.wait("document.getElementById('error').textContent.includes('broken')")
    give(tab, "paste", bytes(2**20 + 1))
    tab.wait("document.getElementById('error').textContent.includes('larger than 1 MiB')")
    tab.run("document.getElementById('wanted').value = 'none.png'")
    tab.run("document.getElementById('form').requestSubmit()")
    tab.wait("document.getElementById('error').textContent.includes('no image of this id')")
    assert tab.run("document.querySelectorAll('#results li').length") == 0
    assert tab.run("document.getElementById('error').getAttribute('role')") == "alert"
    fill(tab, "within", "nothing/")
    tab.open(f"{server}?id={urllib.parse.quote(NAMES[0])}&within=nothing/")
    text = "No image whose ids begin with nothing/."
    tab.wait(f"document.getElementById('status').textContent == {json.dumps(text)}")


def test_a_server_that_is_away_is_told(tab, server):
    tab.open(f"{server}?id={urllib.parse.quote(NAMES[0])}")
    results(tab, 24)
    tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0,
             uploadThroughput=0)  # fmt: skip
    try:
        fill(tab, "k", "5")
        assert error(tab) == "No result: the server does not answer; is it running?"
    finally:
        tab.call("Network.emulateNetworkConditions", offline=False, latency=0,
                 downloadThroughput=-1, uploadThroughput=-1)  # fmt: skip
    fill(tab, "k", "6")
    results(tab, 6)
    assert tab.run("document.getElementById('error').hidden")


# Not in a frame, which the page's policy forbids; its links are not all to its own sections.
WRONG = LOOK[: LOOK.index("addEventListener")].replace("frame.contentDocument", "document")
WRONG = WRONG.replace('"leads nowhere", all("a")', '"leads nowhere", all("a[href^=\'#\']")')
CONTRAST = """
(() => {
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!color.startsWith("rgba(0, 0, 0, 0")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("body *")].filter(
    e => e.checkVisibility() && [...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()));
  return texts.map(e => {
    const both = [light(getComputedStyle(e).color), light(ground(e))].sort();
    return [(Math.max(...both) + 0.05) / (Math.min(...both) + 0.05), e.outerHTML.slice(0, 99)];
  }).filter(([ratio]) => ratio < 4.5);
})()
"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_looks_right(tab, server, width, dark):
    tab.size(width, dark=dark)
    pages = ["", f"?id={urllib.parse.quote(NAMES[1])}&explain=1", "duplicates"]
    for page in pages:
        tab.open(f"{server}{page}")
        if "?" in page:
            results(tab, 24)
        tab.run(LOADED)
        found = tab.run(f"(() => {{ {WRONG} return wrong(window) }})()")
        allowed = "would run: <script", "would run: <form"
        found = [one for one in found if not one.startswith(allowed)]
        assert found == []
        assert tab.run(CONTRAST) == []
        back = tab.run("getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(21, 23, 26)") == dark
        small = tab.run(
            "[...document.querySelectorAll('button, .fields input')].filter(e =>"
            "e.getBoundingClientRect().height < (e.type == 'checkbox' ? 16 : 36)).length"
        )
        assert small == 0
