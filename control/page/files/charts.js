// The charts of the overview: GET /api/v1/history, drawn by uPlot. They keep their range for the tab.
"use strict";

const RANGE = "sluice-hours";
const HISTORY_MS = 20000;
const LINES = ["--line-1", "--line-2", "--line-3", "--line-4", "--line-5", "--line-6"];
const plots = new Map();
const utc = (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC");
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const number = (value) => (value == null ? "–" : compact.format(value));

function hours() {
  return Number(sessionStorage.getItem(RANGE)) || 6;
}

// The figures of a chart: one rate, or the lag of every topic.
function namesOf(chart, figures) {
  const found = Object.keys(figures).filter((name) => (chart === "lag" ? name.startsWith("lag ") : name === chart));
  return found.sort();
}

function options(figure, names, width) {
  const axis = { stroke: color("--soft"), grid: { stroke: color("--edge"), width: 1 }, ticks: { stroke: color("--edge") } };
  const title = figure.querySelector("b").textContent;
  const series = names.map((name, at) => ({
    label: name.startsWith("lag ") ? name.slice(4) : title,
    stroke: color(LINES[at % LINES.length]),
    fill: names.length === 1 ? color("--area") : undefined,
    width: 1.5,
    points: { show: false },
    value: (_, value) => number(value),
  }));
  return {
    width,
    height: 180,
    tzDate: utc,
    fmtDate: (template) => uPlot.fmtDate(template.replace("{h}", "{HH}").replace("{aa}", "")),
    cursor: { drag: { x: false, y: false } },
    scales: { y: { range: (_, low, high) => [0, Math.max(high * 1.1, 1)] } },
    axes: [{ ...axis, values: ticks }, { ...axis, size: 56, values: (_, values) => values.map(number) }],
    series: [{ label: "UTC", value: (_, at) => (at == null ? "–" : iso(at).replace("T", " ")) }, ...series],
  };
}

const iso = (at) => new Date(at * 1000).toISOString().slice(0, 19);

// Hours and minutes; the date where a day begins.
function ticks(_, values) {
  return values.map((at) => (at % 86400 ? iso(at).slice(11, at % 60 ? 19 : 16) : iso(at).slice(5, 10)));
}

function draw(figure, history) {
  const names = namesOf(figure.dataset.chart, history.figures);
  const data = [history.at, ...names.map((name) => history.figures[name])];
  const place = figure.querySelector(".plot");
  const key = `${names}`;
  const known = plots.get(figure);
  if (known && known.key === key) known.plot.setData(data);
  else {
    known?.plot.destroy();
    plots.set(figure, { key, plot: new uPlot(options(figure, names, place.clientWidth), data, place) });
  }
  figure.querySelector(".summary").textContent = summary(figure, names, history.figures);
}

// What a screen reader has of a chart: the newest value and the highest.
function summary(figure, names, figures) {
  const values = names.flatMap((name) => figures[name].filter((value) => value !== null));
  if (!values.length) return "no history yet";
  const last = Math.max(...names.map((name) => figures[name].at(-1) ?? 0));
  return `now ${number(last)}, at most ${number(Math.max(...values))}`;
}

async function fetchHistory() {
  const section = byId("charts");
  if (!section || document.hidden) return;
  for (const button of section.querySelectorAll("[data-hours]"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.hours) === hours()));
  try {
    const signal = AbortSignal.timeout(HISTORY_MS);
    const answer = await fetch(`/api/v1/history?hours=${hours()}`, { headers: headers(), signal });
    if (!answer.ok) return;
    const history = await answer.json();
    for (const figure of section.querySelectorAll("[data-chart]")) draw(figure, history);
  } catch (error) {
    console.debug(error);
  }
}

function redraw() {
  for (const { plot } of plots.values()) plot.destroy();
  plots.clear();
  fetchHistory();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-hours]");
  if (!button) return;
  sessionStorage.setItem(RANGE, button.dataset.hours);
  fetchHistory();
});
let resized = 0;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => {
    for (const [figure, { plot }] of plots) plot.setSize({ width: figure.querySelector(".plot").clientWidth, height: 180 });
  }, 100);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.addEventListener("visibilitychange", fetchHistory);
addEventListener("shown", fetchHistory);
setInterval(fetchHistory, HISTORY_MS);
