// Two evaluations or benchmark results, pair by pair: biggest differences first, and a vote on each.

import { el, options, picture, textBlock, short } from "./dom.js";
import { scoreTable } from "./sample.js";
import { get, pictureUrl, post } from "./server.js";

export function comparePage(page, query, signal) {
  const view = new Compare(page);
  view.begin(query);
  addEventListener("keydown", (event) => view.key(event), { signal });
}

const VOTES = { a: "A is better", b: "B is better", t: "tie" };

class Compare {
  constructor(page) {
    this.pairs = [];
    this.shown = [];
    this.votes = {};
    this.at = 0;
    const change = () => this.load();
    this.a = el("select", { onchange: change, "aria-label": "A" });
    this.b = el("select", { onchange: change, "aria-label": "B" });
    this.task = el("select", { onchange: () => this.filter(), "aria-label": "task type" });
    this.notes = el("div");
    this.place = el("span", { id: "place" });
    this.tally = el("span", { class: "quiet", id: "tally" });
    this.pair = el("div", { id: "pair" });
    this.buttons = Object.entries(VOTES).map(([key, text]) =>
      el("button", { onclick: () => this.vote(key), "data-vote": key }, text, " ", el("kbd", {}, key)));
    page.append(
      el("h1", {}, "Compare"),
      el("div", { class: "row" }, el("label", {}, "A", this.a), el("label", {}, "B", this.b), this.task),
      this.notes,
      el("div", { class: "row" },
        el("button", { onclick: () => this.step(-1), "aria-label": "previous" }, "←"), this.place,
        el("button", { onclick: () => this.step(1), "aria-label": "next" }, "→"), ...this.buttons, this.tally),
      this.pair);
  }

  async begin(query) {
    const found = await get("comparable");
    const choices = found.map(({ path, label }) => [path, label]);
    if (found.length < 2) {
      this.pair.replaceChildren(el("p", { class: "quiet" },
        "Two evaluations or benchmark results are needed; there are not so many yet."));
      return;
    }
    const run = choices[0][0].split("/")[0];
    const first = choices.findLast(([path]) => path.split("/")[0] === run && path !== choices[0][0]) ?? choices[1];
    options(this.a, choices, query.get("a") ?? first[0]);
    options(this.b, choices, query.get("b") ?? choices[0][0]);
    await this.load();
  }

  async load() {
    const sides = { a: this.a.value, b: this.b.value };
    this.pair.replaceChildren(el("p", { class: "quiet" }, "reading …"));
    try {
      const [found, votes] = await Promise.all([get("compare", sides), get("votes", sides)]);
      if (sides.a !== this.a.value || sides.b !== this.b.value) return;
      this.pairs = found.pairs;
      this.votes = votes;
      this.notes.replaceChildren(...found.notes.map((note) => el("p", { class: "warning" }, note)));
    } catch (error) {
      this.pairs = [];
      this.notes.replaceChildren(el("p", { class: "warning" }, error.message));
    }
    const tasks = [...new Set(this.pairs.map((pair) => pair.task))].sort();
    options(this.task, [["", "all task types"], ...tasks.map((task) => [task, task])], this.task.value);
    this.filter();
  }

  filter() {
    this.shown = this.pairs.filter((pair) => !this.task.value || pair.task === this.task.value);
    this.at = 0;
    this.show();
  }

  step(by) {
    this.at = Math.max(0, Math.min(this.shown.length - 1, this.at + by));
    this.show();
  }

  show() {
    const pair = this.shown[this.at];
    this.place.textContent = pair ? `${this.at + 1} of ${this.shown.length}` : "none";
    const counted = Object.values(this.votes);
    const count = (vote) => counted.filter((one) => one === vote).length;
    this.tally.textContent = counted.length ? `votes: A ${count("a")}, B ${count("b")}, tie ${count("tie")}` : "";
    for (const button of this.buttons) {
      button.disabled = !pair;
      const key = button.dataset.vote;
      button.classList.toggle("chosen", Boolean(pair) && this.votes[pair.key] === (key === "t" ? "tie" : key));
    }
    if (!pair) {
      this.pair.replaceChildren();
      return;
    }
    const difference = pair.difference == null ? "one of them has no score"
      : `B is ${short(Math.abs(pair.difference))} ${pair.difference < 0 ? "below" : "above"} A`;
    this.pair.replaceChildren(
      el("div", { class: "card" }, textBlock(pair.prompt), el("p", { class: "quiet small" }, `${pair.task} · ${difference}`)),
      el("div", { class: "sides" }, side("A", pair.a), side("B", pair.b)));
  }

  async vote(key) {
    const pair = this.shown[this.at];
    if (!pair) return;
    const vote = key === "t" ? "tie" : key;
    await post("votes", { a: this.a.value, b: this.b.value, key: pair.key, vote });
    this.votes[pair.key] = vote;
    this.step(1);
  }

  key(event) {
    const busy = event.ctrlKey || event.metaKey || event.altKey || event.repeat && event.key in VOTES
      || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
    if (busy) return;
    if (event.key === "ArrowRight") this.step(1);
    else if (event.key === "ArrowLeft") this.step(-1);
    else if (Object.hasOwn(VOTES, event.key)) this.vote(event.key);
    else return;
    event.preventDefault();
  }
}

function side(name, { image, score, cot, scores, explanation }) {
  return el("div", { class: "card" },
    el("p", { class: "small" }, el("b", {}, name), ` ${short(score)}`),
    image ? picture(pictureUrl(image)) : el("p", { class: "quiet" }, "The image lies elsewhere."),
    textBlock(cot, "cot"), scoreTable(scores, explanation),
    ...Object.keys(explanation).filter((judge) => !(judge in scores))
      .map((judge) => textBlock(`${judge}: ${explanation[judge]}`, "small")));
}
