// The list of runs, and one curve of several of them in one chart.

import { Chart } from "./chart.js";
import { ago, el, options, short } from "./dom.js";
import { live } from "./live.js";
import { get, runPath } from "./server.js";

const FIRST = ["reward/mean", "eval/reward", "loss", "loss/cot", "loss/image"];

export function runsPage(page, signal) {
  const chosen = new Set(), boxes = new Map();
  let known = false;
  const title = el("h1", {}, "Runs");
  const body = el("tbody");
  const chart = new Chart("", 240);
  const select = el("select", { onchange: () => overlay(), "aria-label": "curve" });
  options(select, FIRST.map((name) => [name, name]), "reward/mean");
  const folder = el("p", { class: "quiet small text-block" });
  const head = ["", "run", "state", "step", "reward now", "last written"].map((name, n) =>
    el("th", { class: n === 3 || n === 4 ? "number" : n === 5 ? "wide" : "" }, name));
  page.append(
    title, folder,
    el("div", { class: "row" }, el("label", {}, "curve ", select), el("span", { class: "quiet small" }, "of the runs that are ticked")),
    chart.element,
    el("div", { class: "scroll" }, el("table", { id: "runs" }, el("thead", {}, el("tr", {}, ...head)), body)));

  async function look() {
    const { folder: where, runs } = await get("runs");
    folder.textContent = runs.length ? where : `There is no run in ${where} yet.`;
    if (!known && runs.length) {
      runs.slice(0, 3).forEach((run) => chosen.add(run.name));
      known = true;
      names();
    }
    body.replaceChildren(...runs.map(row));
    await overlay();
  }

  function row(run) {
    const box = boxes.get(run.name) ?? el("input", { type: "checkbox", "aria-label": `show ${run.name}`,
      onchange: () => { box.checked ? chosen.add(run.name) : chosen.delete(run.name); names(); overlay(); } });
    boxes.set(run.name, box);
    box.checked = chosen.has(run.name);
    return el("tr", {},
      el("td", {}, box),
      el("td", { class: "long" }, el("a", { href: `#/run/${encodeURIComponent(run.name)}` }, run.name)),
      el("td", {}, el("span", { class: `state ${run.state}` }, run.state)),
      el("td", { class: "number" }, `${run.step ?? "–"}${run.steps ? ` / ${run.steps}` : ""}`),
      el("td", { class: "number" }, short(run.reward)),
      el("td", { class: "quiet wide" }, ago(run.written)));
  }

  async function names() {
    const found = new Set(FIRST);
    for (const run of chosen) (await get(runPath(run, "names"))).forEach((name) => found.add(name));
    options(select, [...found].map((name) => [name, name]), select.value);
  }

  async function overlay() {
    const name = select.value;
    const found = await Promise.all([...chosen].map(async (run) =>
      ({ ...await get(runPath(run, "curve"), { name }), name: run })));
    if (!signal.aborted && name === select.value) chart.update(found);
  }

  live(look, 3, signal);
}
