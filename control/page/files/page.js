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

function clock() {
  return `${new Date().toISOString().slice(11, 19)} UTC`;
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

// Sections that somebody opened or closed stay so when they are replaced.
const folds = {};

document.addEventListener("click", (event) => {
  const summary = event.target.closest("summary");
  if (summary) folds[summary.closest("section").id] = !summary.parentElement.open;
  const link = event.target.closest('a[href^="#"]');
  const details = link && byId(link.hash.slice(1))?.querySelector("details");
  if (details) details.open = folds[details.parentElement.id] = true;
});

// Keep the focus, the scroll position of tables and the folds when a section is replaced. The charts draw themselves.
function replace(name, made) {
  const old = byId(name);
  if (name === "charts" && old) return;
  if (made.querySelector("details") && name in folds) made.querySelector("details").open = folds[name];
  if (!old) {
    byId("content").append(made);
    return;
  }
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  const label = focused && focused.getAttribute("aria-label");
  const scrolled = [...old.querySelectorAll(".frame")].map((frame) => frame.scrollLeft);
  old.replaceWith(made);
  made.querySelectorAll(".frame").forEach((frame, at) => (frame.scrollLeft = scrolled[at] || 0));
  if (!focused) return;
  const same = (one) => (label ? one.getAttribute("aria-label") === label : one.textContent === focused.textContent);
  const again = (focused.id && byId(focused.id)) || [...made.querySelectorAll("[aria-label], a, summary")].find(same);
  (again || byId("content")).focus({ preventScroll: true });
}

function element(html) {
  const made = document.createElement("template");
  made.innerHTML = html;
  return made.content.firstElementChild;
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
  for (const [name, html] of Object.entries(page.sections)) replace(name, element(html));
  trouble(page.trouble);
  live("yes", `live, ${clock()}`);
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
    if (answer.ok) notify(`${what}: ${outcome(result)}`);
    else notify(`${what}: ${result.error.message}; ${result.error.remedy}`);
  } catch (error) {
    notify(`${what}: no answer (${error.message})`);
  }
  button.disabled = false;
  if (!overview()) await load();
}

function outcome(result) {
  if (result.why) return `${result.state}, ${result.why}`;
  if (!result.findings) return "done";
  if (!result.findings.length) return `${result.records} records match what the account signed`;
  return `${result.findings.join("; ")}; ${result.queued ? "the repo is fetched again" : "not fetched again"}`;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (button) post(button);
});

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value);
  byId("token").value = "";
  start();
});

// The other pages are requested again, and their sections replaced.
const REFRESH_MS = 5000;
const ANSWER_MS = 30000;
const overview = () => document.body.dataset.page === "overview";

async function load() {
  const token = sessionStorage.getItem(TOKEN);
  const answer = await fetch(location.href, { headers: headers(), signal: AbortSignal.timeout(ANSWER_MS) });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!page.getElementById("ask").hidden) {
    if (token === sessionStorage.getItem(TOKEN)) ask();
    return false;
  }
  if (answer.redirected) history.replaceState(null, "", answer.url);
  document.title = page.title;
  document.body.dataset.page = page.body.dataset.page;
  byId("ask").hidden = true;
  const made = [...page.getElementById("content").children];
  const names = made.map((one) => one.id);
  for (const old of [...byId("content").children]) if (!names.includes(old.id)) old.remove();
  if (!pressed) made.forEach((one) => replace(one.id, document.adoptNode(one)));
  trouble(page.getElementById("trouble").textContent);
  live("yes", `as of ${clock()}`);
  return true;
}

let refreshing = 0;

// At most a tenth of the time is spent on requests; a hidden page is not refreshed.
async function refresh() {
  const own = ++refreshing;
  for (let took = 0; own === refreshing; ) {
    await new Promise((done) => setTimeout(done, Math.max(REFRESH_MS, 10 * took)));
    if (document.hidden || own !== refreshing) continue;
    const began = performance.now();
    try {
      if (!(await load())) return;
    } catch (error) {
      live("no", "not connected, trying again");
    }
    took = performance.now() - began;
  }
}

async function start() {
  try {
    if (byId("content").childElementCount === 0 && !(await load())) return;
  } catch (error) {
    live("no", "not connected; reload the page");
    return;
  }
  dispatchEvent(new Event("shown"));
  if (overview()) follow();
  else if (document.body.dataset.page === "repo" || !byId("trouble").hidden) refresh();
}

if (byId("ask").hidden || sessionStorage.getItem(TOKEN)) start();
else ask();
