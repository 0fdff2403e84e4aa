// Keeps the page up to date: sections that changed replace the old ones, and buttons post to the API.
// The stream is read with fetch, because EventSource cannot send the token.
"use strict";

const TOKEN = "sluice-token";
const RETRY_MS = 3000;
const byId = (id) => document.getElementById(id);
document.documentElement.classList.add("js");

function headers(more) {
  const token = sessionStorage.getItem(TOKEN);
  return token ? { ...more, Authorization: `Bearer ${token}` } : { ...more };
}

function notify(text) {
  byId("notice").textContent = text;
}

function live(state, text) {
  document.body.dataset.live = state;
  byId("live").textContent = text;
}

function trouble(text) {
  byId("trouble").textContent = text;
  byId("trouble").hidden = !text;
}

function ask() {
  const refused = sessionStorage.getItem(TOKEN) !== null;
  sessionStorage.removeItem(TOKEN);
  byId("ask").hidden = false;
  byId("token").focus();
  live("locked", refused ? "that token is not valid" : "a token is needed");
}

// Keep the focus and the scroll position of tables when a section is replaced.
function replace(name, html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  const old = byId(name);
  if (!old) {
    byId("content").append(made.content);
    return;
  }
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const label = focused && focused.getAttribute("aria-label");
  const scrolled = [...old.querySelectorAll(".frame")].map((frame) => frame.scrollLeft);
  old.replaceWith(made.content);
  const now = byId(name);
  now.querySelectorAll(".frame").forEach((frame, at) => (frame.scrollLeft = scrolled[at] || 0));
  if (focused) {
    const again = (focused.id && byId(focused.id)) || [...now.querySelectorAll("[aria-label]")].find((e) => e.getAttribute("aria-label") === label);
    (again || byId("content")).focus({ preventScroll: true });
  }
}

// A button that is replaced between press and release gets no click: delay changes until the release.
let pressed = false;
let delayed = null;

addEventListener("pointerdown", (event) => (pressed = event.button === 0), true);
for (const end of ["pointerup", "pointercancel", "blur"]) {
  addEventListener(end, () => setTimeout(release), true);
}

function release() {
  pressed = false;
  const page = delayed;
  delayed = null;
  if (page) show(page);
}

function show(page) {
  if (pressed) {
    delayed = { ...page, sections: { ...delayed?.sections, ...page.sections } };
    return;
  }
  byId("ask").hidden = true;
  for (const [name, html] of Object.entries(page.sections)) replace(name, html);
  trouble(page.trouble);
  live("yes", `live, ${new Date().toLocaleTimeString()}`);
}

async function read(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (waiting + value).split("\n\n");
    waiting = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: "));
      if (data) show(JSON.parse(data.slice(6)));
    }
  }
}

// One stream at a time. A new token aborts the previous stream: its late 401 must not remove the new token.
let stream = new AbortController();

async function follow() {
  stream.abort();
  const { signal } = (stream = new AbortController());
  for (;;) {
    try {
      const answer = await fetch("/events", { headers: headers(), signal });
      if (signal.aborted) return;
      if (answer.status === 401 || answer.status === 403) return ask();
      if (answer.ok) await read(answer);
    } catch (error) {
      console.debug(error);
    }
    if (signal.aborted) return;
    live("no", "not connected, trying again");
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

async function post(button) {
  if (button.dataset.sure && !confirm(button.dataset.sure)) return;
  const what = button.getAttribute("aria-label");
  button.disabled = true;
  notify(`${what} …`);
  try {
    const body = button.dataset.body || undefined;
    const answer = await fetch(button.dataset.post, { method: "POST", headers: headers({ "Content-Type": "application/json" }), body });
    const result = await answer.json();
    if (answer.ok) notify(result.why ? `${what}: ${result.state}, ${result.why}` : `${what}: done`);
    else notify(`${what}: ${result.error.message}; ${result.error.remedy}`);
  } catch (error) {
    notify(`${what}: no answer (${error.message})`);
  }
  button.disabled = false;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (button) post(button);
});

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value);
  byId("token").value = "";
  follow();
});

if (byId("ask").hidden || sessionStorage.getItem(TOKEN)) follow();
else ask();
