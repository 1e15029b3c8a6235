"use strict";
// The query is in the address, so that back and forward, a reload and a link lead to it again.

const at = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
// The pictures of images that were sent, by their embedding; an address has no room for them.
const sent = new Map();
let running = null;

// An id has bytes that are not UTF-8 as lone surrogates; in an address they are those bytes.
function encodeId(id) {
  const part = (text, i) =>
    i % 2 ? "%" + (text.charCodeAt(0) - 0xdc00).toString(16).toUpperCase() : encodeURIComponent(text);
  return id.split(/([\udc80-\udcff])/u).map(part).join("");
}

function decodeId(text) {
  try {
    return decodeURIComponent(text.replaceAll("+", " "));
  } catch {
    const byte = (_, hex) => {
      const value = parseInt(hex, 16);
      return String.fromCharCode(value < 0x80 ? value : 0xdc00 + value);
    };
    return text.replaceAll("+", " ").replace(/%([0-9a-f]{2})/gi, byte);
  }
}

function readAddress(search = location.search) {
  const pairs = search.slice(1).split("&").filter(Boolean);
  const given = Object.fromEntries(pairs.map((pair) => pair.split("=", 2).map(decodeId)));
  return {
    id: given.id || "",
    embedding: given.embedding || "",
    k: Number(given.k) || 24,
    within: given.within || "",
    explain: given.explain === "1",
  };
}

function addressOf(query) {
  const kept = { id: query.id, embedding: query.embedding, within: query.within };
  if (query.k !== 24) kept.k = String(query.k);
  if (query.explain) kept.explain = "1";
  const pairs = Object.entries(kept).filter(([, value]) => value);
  const text = pairs.map(([name, value]) => `${name}=${encodeId(value)}`).join("&");
  return text ? `/?${text}` : "/";
}

function readForm() {
  const { id, embedding } = readAddress();
  const shown = at("wanted").value;
  // A field drops line breaks.
  const wanted = shown === id.replace(/[\r\n]/g, "") ? id : shown;
  return {
    id: wanted,
    embedding: wanted || id ? "" : embedding,
    k: at("k").valueAsNumber || 24,
    within: at("within").value,
    explain: at("explain").checked,
  };
}

function fillForm(query) {
  at("wanted").value = query.id;
  at("k").value = query.k;
  at("within").value = query.within;
  at("explain").checked = query.explain;
}

function say(error) {
  at("error").textContent = error;
  at("error").hidden = !error;
}

// Asks the server; gives its answer, or null where a newer query is under way or it failed.
async function ask(address, options) {
  running?.abort();
  const own = (running = new AbortController());
  document.body.classList.add("busy");
  at("status").textContent = "Searching …";
  say("");
  try {
    const response = await fetch(address, { method: "POST", signal: own.signal, ...options });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    return answer;
  } catch (error) {
    if (own.signal.aborted) return null;
    // What fetch itself raises is a TypeError.
    const away = "the server does not answer; is it running?";
    showNothing();
    say(`No result: ${error instanceof TypeError || error instanceof SyntaxError ? away : error.message}`);
    return null;
  } finally {
    if (running === own) {
      running = null;
      document.body.classList.remove("busy");
    }
  }
}

async function run() {
  const query = readAddress();
  fillForm(query);
  if (!query.id && !query.embedding) {
    running?.abort();
    location.reload();
    return;
  }
  const { id, embedding, ...others } = query;
  const asked = id ? { id, ...others } : { embedding, ...others };
  const headers = { "Content-Type": "application/json" };
  const answer = await ask("/api/search", { headers, body: JSON.stringify(asked) });
  if (answer) show(query, answer);
}

async function send(file) {
  const most = Number(document.body.dataset.bodyBytes);
  if (!at("drop")) return say("This index is of features: choose an image of it.");
  if (file.size > most) return say(`${file.name}: larger than ${most / 2 ** 20} MiB; take a smaller one.`);
  at("wanted").value = "";
  const query = { ...readForm(), embedding: "" };
  const rest = `k=${query.k}&within=${encodeId(query.within)}&explain=${Number(query.explain)}`;
  const headers = { "Content-Type": "application/octet-stream" };
  const answer = await ask(`/api/search?${rest}`, { headers, body: file });
  if (!answer) return;
  query.embedding = answer.embedding;
  sent.set(answer.embedding, { address: URL.createObjectURL(file), name: file.name });
  history.pushState(null, "", addressOf(query));
  show(query, answer);
}

function go(query) {
  const address = addressOf(query);
  const isNew = new URL(address, location).search !== location.search;
  // Enter in a changed field is a change and a submission.
  if (!isNew && running) return;
  if (isNew) history.pushState(null, "", address);
  run();
}

function showNothing() {
  at("results").replaceChildren();
  at("query").hidden = true;
  at("status").textContent = "";
}

function show(query, answer) {
  const own = sent.get(query.embedding);
  const source = query.id ? `/api/thumbnail/${encodeId(query.id)}` : own?.address;
  const text = document.createElement("figcaption");
  text.textContent = query.id || own?.name || "An image that was sent before";
  at("query").replaceChildren(...(source ? [picture(source, `Query: ${text.textContent}`)] : []), text);
  at("query").hidden = false;
  const most = Math.max(...(answer.books ?? []).flat(), 1e-9);
  const items = answer.ids.map((id, i) => item(query, id, answer.distances[i], answer.books?.[i], most));
  at("results").replaceChildren(...items);
  const where = query.within ? ` whose ids begin with ${query.within}` : "";
  at("status").textContent = items.length
    ? `The ${items.length} nearest images${where}, nearest first.`
    : `No image${where}.`;
  document.title = `${query.id || own?.name || "Sent image"}: nearest images`;
}

function item(query, id, distance, books, most) {
  const link = document.createElement("a");
  link.href = addressOf({ ...query, id, embedding: "" });
  const near = distance.toPrecision(3);
  const image = picture(`/api/thumbnail/${encodeId(id)}`, `${id}, distance ${near}`);
  link.append(image, span("name", id), span("detail", near));
  const entry = document.createElement("li");
  entry.append(link);
  if (books) entry.append(bars(books, most));
  return entry;
}

function picture(source, alt) {
  const image = document.createElement("img");
  Object.assign(image, { loading: "lazy", width: 160, height: 160, alt, src: source });
  return image;
}

function span(kind, text) {
  const made = document.createElement("span");
  made.className = kind;
  made.textContent = text;
  return made;
}

// What each book adds to a distance, as a bar; the longest bar of the page is full.
function bars(books, most) {
  const svg = document.createElementNS(SVG, "svg");
  const values = books.map((value) => value.toPrecision(3)).join(", ");
  const known = { class: "bars", role: "img", viewBox: `0 0 ${books.length * 10} 32` };
  known.preserveAspectRatio = "none";
  known["aria-label"] = `Distance by book: ${values}`;
  Object.entries(known).forEach(([name, value]) => svg.setAttribute(name, value));
  books.forEach((value, book) => {
    bar(svg, "whole", book, 32);
    bar(svg, "part", book, Math.max(0.5, (32 * value) / most), `Book ${book}: ${value.toPrecision(3)}`);
  });
  return svg;
}

function bar(svg, kind, book, height, title) {
  const rect = document.createElementNS(SVG, "rect");
  const known = { class: kind, x: book * 10 + 1, y: 32 - height, width: 8, height };
  Object.entries(known).forEach(([name, value]) => rect.setAttribute(name, value));
  if (title) {
    const text = document.createElementNS(SVG, "title");
    text.textContent = title;
    rect.append(text);
  }
  svg.append(rect);
}

function takeFiles(files) {
  const file = [...files][0];
  if (file) send(file);
  else say("There is no image in what was given; choose a file.");
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const query = readForm();
  if (query.id || query.embedding) go(query);
  else say("No image yet: choose one, or type the id of one.");
});
at("file")?.addEventListener("change", (event) => {
  if (event.target.files.length) send(event.target.files[0]);
  event.target.value = "";
});
for (const name of ["k", "within", "explain"]) {
  at(name).addEventListener("change", () => {
    const query = readForm();
    if (at("form").reportValidity() && (query.id || query.embedding)) go(query);
  });
}
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  takeFiles(event.dataTransfer.files);
});
addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) takeFiles(event.clipboardData.files);
  else if (event.target.tagName !== "INPUT") say("There is no image in what was pasted.");
});
// The images before the first query and those that are found: their neighbors, by the form's fields.
at("results").addEventListener("click", (event) => {
  const link = event.target.closest("a");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (!at("form").reportValidity()) return;
  go({ ...readForm(), id: readAddress(link.search).id, embedding: "" });
  scrollTo({ top: 0 });
});
// Arrow keys lead through the images, as Tab does.
at("results").addEventListener("keydown", (event) => {
  const links = [...at("results").querySelectorAll("a")];
  const here = links.indexOf(document.activeElement);
  const step = { ArrowRight: 1, ArrowLeft: -1, Home: -here, End: links.length - 1 - here }[event.key];
  if (here < 0 || step === undefined) return;
  event.preventDefault();
  links[Math.min(Math.max(0, here + step), links.length - 1)].focus();
});
addEventListener("popstate", run);
if (location.search) {
  const query = readAddress();
  fillForm(query);
  if (query.id || query.embedding) run();
}
