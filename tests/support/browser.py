"""A real browser that looks at a page and says what is wrong with it."""

import html
import json
import re
import shutil
import subprocess

import pytest

# Looks at the page in a frame of each width, from outside: the page itself allows no script.
LOOK = """
const names = e => (e.getAttribute("aria-label") || e.textContent || e.alt || "").trim();
const wrong = (frame) => {
  const page = frame.contentDocument, found = [];
  const say = (what, some) => some.forEach(e => found.push(what + ": " + e.outerHTML.slice(0, 99)));
  const all = q => [...page.querySelectorAll(q)];
  const root = page.documentElement;
  if (root.scrollWidth > root.clientWidth)
    found.push("scrolls sideways: " + root.scrollWidth + " > " + root.clientWidth);
  say("not loaded", all("img").filter(e => !e.complete || !e.naturalWidth));
  say("without words", all("img").filter(e => !e.alt.trim()));
  say("without words", all("svg").filter(e => !names(e) || e.getAttribute("role") != "img"));
  say("without a name", all("a, summary, nav, section[aria-labelledby]").filter(e => !names(e)));
  const scrolling = all("body *").filter(
    e => e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX == "auto");
  say("out of reach", all("a, summary").concat(scrolling).filter(e => e.tabIndex < 0));
  say("leads nowhere", all("a").filter(e => !page.querySelector(e.getAttribute("href"))));
  say("second of its id", all("[id]").filter(e => page.getElementById(e.id) != e));
  const levels = all("h1, h2, h3, h4").map(e => +e.tagName[1]);
  const skips = levels.filter((level, i) => level > (levels[i - 1] || 0) + 1);
  skips.forEach(level => found.push("skips to h" + level));
  say("would run", all("script, iframe, object, embed, form, [onclick], [onerror], [onload]"));
  return found;
};
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  const told = frames.map(f => ({
    width: f.contentWindow.innerWidth,
    images: f.contentDocument.images.length,
    wrong: wrong(f),
  }));
  document.getElementById("told").textContent = JSON.stringify(told);
});
"""
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-logging=stderr",
    "--window-size=1500,1000",
    "--dump-dom",
]


def look_at(page, folder, widths=(400, 1400)):
    """Opens a page, all its details too, at some widths.

    Args:
        page: its HTML.
        folder: a folder for the browser.

    Returns:
        list of dicts, one for each width: `width`, `images` (how many), `wrong` (list of what is);
        and the list of the lines of the console.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    opened = html.escape(page.replace("<details>", "<details open>"))
    frames = [f'<iframe srcdoc="{opened}" style="width: {width}px"></iframe>' for width in widths]
    looking = folder / "looking.html"
    looking.write_text(
        f'<!DOCTYPE html><pre id="told"></pre>{"".join(frames)}<script>{LOOK}</script>'
    )
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", looking.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    told = re.search('<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)[1]
    console = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    return json.loads(html.unescape(told)), console
