// One run as it goes on: curves, samples, warnings, what became of its prompts, its configuration.

import { Chart } from "./chart.js";
import { ago, el, options, short } from "./dom.js";
import { live } from "./live.js";
import { sampleCard } from "./sample.js";
import { get, runPath } from "./server.js";

export function runPage(page, run, signal) {
  document.title = `${run} - bicot studio`;
  const status = el("div", { class: "row", id: "status" });
  const warnings = el("div", { id: "warnings" });
  const ledger = el("div", { id: "ledger" });
  const curves = new Curves(run), samples = new Samples(run), config = new Config(run);
  page.append(
    el("h1", {}, run), status, warnings, ...curves.elements,
    el("h2", {}, "Samples"), ...samples.elements,
    el("h2", {}, "What became of its prompts"), ledger,
    el("h2", {}, "Configuration"), ...config.elements);

  async function look() {
    const behind = await curves.look(); // first: warnings are those of what was read
    const about = await get(runPath(run, "about"));
    showStatus(status, about, curves.now, behind);
    warnings.replaceChildren(...about.warnings.slice(0, 12).map(({ text, steps, last }) =>
      el("p", { class: "warning" }, `${text} (${steps} ${steps === 1 ? "step" : "steps"}, last at step ${last})`)));
    showLedger(ledger, about.ledger);
    await samples.look(about.samples);
    return behind;
  }

  live(look, 2, signal);
  config.look();
}

function showStatus(row, about, now, behind) {
  const parts = [`step ${about.step ?? "–"}${about.steps ? ` of ${about.steps}` : ""}`];
  if (now["reward/mean"] != null) parts.push(`reward ${short(now["reward/mean"])}`);
  if (now["time/step"] != null) parts.push(`${short(now["time/step"])} s a step`);
  parts.push(`last written ${ago(about.written)}`);
  if (behind) parts.push("still reading: the curves are a sample");
  row.replaceChildren(
    el("span", { class: `state ${about.state}` }, about.state),
    ...parts.map((text) => el("span", {}, text)));
}

function showLedger(box, { outcomes, reasons }) {
  const all = outcomes.reduce((sum, [, count]) => sum + count, 0);
  if (!all) {
    box.replaceChildren(el("p", { class: "quiet" }, "Nothing is accounted for yet."));
    return;
  }
  box.replaceChildren(
    el("table", {}, ...outcomes.map(([name, count, meaning]) => el("tr", {},
      el("td", {}, name), el("td", { class: "number" }, count.toLocaleString("en")),
      el("td", { class: "number" }, `${(100 * count / all).toFixed(1)} %`), el("td", { class: "quiet" }, meaning)))),
    ...reasons.map(([why, count]) => el("p", { class: "text-block small" }, `${count} x ${why}`)));
}

class Curves {
  constructor(run) {
    this.run = run;
    this.charts = new Map();
    this.version = "";
    this.now = {};
    this.box = el("div", { class: "charts", id: "charts" });
    this.every = el("input", { type: "checkbox", onchange: () => this.look() });
    this.hidden = el("span");
    this.elements = [this.box, el("p", { class: "row" }, el("label", {}, this.every, this.hidden))];
  }

  // Whether the server has more to read at once.
  async look() {
    const found = await get(runPath(this.run, "curves"), { known: this.version, every: this.every.checked });
    if (!found) return false;
    this.version = found.version;
    this.now = found.now;
    this.hidden.textContent = found.hidden ? `all curves (${found.hidden} more)` : "all curves";
    const there = found.charts.map(({ title, lines }) => {
      const chart = this.charts.get(title) ?? new Chart(title);
      this.charts.set(title, chart);
      chart.update(lines);
      return chart.element;
    });
    const same = there.length === this.box.children.length && there.every((one, n) => one === this.box.children[n]);
    if (!same) this.box.replaceChildren(...there);
    return found.behind;
  }
}

const MORE = 24;

class Samples {
  constructor(run) {
    this.run = run;
    this.names = null;
    this.most = MORE;
    const change = () => { this.most = MORE; this.show(); };
    this.which = el("select", { onchange: change, "aria-label": "samples" });
    this.order = el("select", { onchange: change, "aria-label": "order" });
    options(this.order, [["", "in their order"], ["best", "best first"], ["worst", "worst first"]], "");
    this.expert = el("select", { onchange: change, "aria-label": "score" });
    this.task = el("select", { onchange: change, "aria-label": "task type" });
    this.boxes = el("input", { type: "checkbox", onchange: () => this.show() });
    this.more = el("button", { onclick: () => { this.most = Math.min(this.most + MORE, 200); this.show(); } }, "More");
    this.list = el("div", { class: "samples", id: "samples" });
    options(this.expert, [["", "reward"]], "");
    options(this.task, [["", "all task types"]], "");
    const row = el("div", { class: "row" }, this.which, this.order, el("label", {}, "by", this.expert), this.task,
      el("label", {}, this.boxes, "boxes"));
    this.elements = [row, this.list, el("div", { class: "row" }, this.more)];
  }

  async look(names) {
    if (names.join() === this.names?.join()) return;
    const follow = !this.names?.length || this.which.value === "newest";
    this.names = names;
    const choices = names.map((name) => {
      const [kind, step] = name.split("_");
      return [name, `${kind === "eval" ? "evaluation" : "training"}, step ${Number(step)}`];
    });
    options(this.which, [["newest", "newest"], ...choices], follow ? "newest" : this.which.value);
    if (follow) await this.show();
  }

  async show() {
    const name = this.which.value === "newest" ? this.names[0] : this.which.value;
    if (!name) {
      this.list.replaceChildren(el("p", { class: "quiet" }, "None yet."));
      this.more.hidden = true;
      return;
    }
    const expert = this.expert.value;
    const found = await get(runPath(this.run, `samples/${name}`), {
      expert: this.order.value ? expert : "", order: this.order.value, task: this.task.value, most: this.most });
    options(this.expert, [["", "reward"], ...found.experts.map((one) => [one, one])], expert);
    options(this.task, [["", "all task types"], ...found.tasks.map((one) => [one, one])], this.task.value);
    this.more.hidden = found.of <= found.rows.length;
    this.list.replaceChildren(...found.rows.map((row) => sampleCard(row, found.folder, this.boxes.checked, expert)));
    this.list.dataset.name = name;
  }
}

class Config {
  constructor(run) {
    this.run = run;
    this.other = el("select", { onchange: () => this.show(), "aria-label": "another run" });
    this.only = el("input", { type: "checkbox", onchange: () => this.show() });
    this.table = el("table", { id: "config" });
    this.elements = [
      el("div", { class: "row" }, el("label", {}, "beside", this.other), el("label", {}, this.only, "only what differs")),
      el("details", {}, el("summary", {}, "every key"), el("div", { class: "scroll" }, this.table))];
    this.details = this.elements[1];
  }

  async look() {
    const { runs } = await get("runs");
    const others = runs.map((one) => one.name).filter((name) => name !== this.run);
    options(this.other, [["", "no other run"], ...others.map((name) => [name, name])], "");
    await this.show();
  }

  async show() {
    const other = this.other.value;
    const rows = await get(runPath(this.run, "config"), { other });
    if (other) this.details.open = true;
    const shown = rows.filter(([, mine, theirs]) => !this.only.checked || mine !== theirs);
    this.table.replaceChildren(
      el("tr", {}, el("th", {}, "key"), el("th", {}, this.run), other ? el("th", {}, other) : ""),
      ...shown.map(([key, mine, theirs]) => el("tr", { class: mine === theirs ? "" : "differs" },
        el("td", { class: "long" }, key), el("td", { class: "long" }, mine ?? "–"),
        other ? el("td", { class: "long" }, theirs ?? "–") : "")));
  }
}
