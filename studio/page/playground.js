// Draw with one or two models: the semantic CoT as it is written, to be changed, then the picture.

import { el, picture, textBlock } from "./dom.js";
import { draw, get } from "./server.js";

export function playgroundPage(page, signal) {
  new Playground(page, signal).begin();
}

class Playground {
  constructor(page, signal) {
    this.signal = signal;
    this.page = page;
    this.prompt = el("textarea", { rows: 2, id: "prompt", placeholder: "two red circles and a blue square" });
    this.cot = el("textarea", { rows: 3, id: "cot", placeholder: "Empty: the model writes one." });
    this.seed = el("input", { type: "number", min: 0, class: "narrow", id: "seed", placeholder: "random" });
    this.guidance = el("input", { type: "number", min: 1, max: 100, step: 0.1, class: "narrow", id: "guidance", placeholder: "the model's" });
    this.n = el("input", { type: "number", min: 1, max: 10, value: 1, class: "narrow", id: "n" });
    this.think = el("button", { id: "think", onclick: () => this.go(true) }, "Think only");
    this.draw = el("button", { id: "draw", class: "main", onclick: () => this.go(false) }, "Draw");
    this.stop = el("button", { id: "stop", disabled: true, onclick: () => this.running?.abort() }, "Stop");
    this.models = el("div", { class: "models", id: "models" });
  }

  async begin() {
    this.page.append(el("h1", {}, "Playground"));
    const models = await get("models");
    if (!models.length) {
      this.page.append(el("p", { class: "quiet" },
        "No model is given: start the page with --model URL, the address of a `bicot serve-model`."));
      return;
    }
    this.columns = models.map((model, number) => new Column(model, number, (text) => { this.cot.value = text; }));
    this.models.append(...this.columns.map((column) => column.element));
    this.page.append(
      el("label", { for: "prompt" }, "Prompt"), this.prompt,
      el("label", { for: "cot" }, "Semantic CoT to draw from"), this.cot,
      el("div", { class: "row" }, el("label", {}, "seed", this.seed), el("label", {}, "guidance", this.guidance),
        el("label", {}, "images", this.n), this.draw, this.think, this.stop),
      this.models);
  }

  async go(thinkOnly) {
    const body = { prompt: this.prompt.value, n: thinkOnly ? 1 : Number(this.n.value) || 1 };
    if (!thinkOnly && this.cot.value.trim()) body.cot = this.cot.value;
    // Models are compared with the same seed.
    body.seed = this.seed.value === "" ? Math.floor(Math.random() * 2 ** 32) : Number(this.seed.value);
    if (this.guidance.value !== "") body.guidance = Number(this.guidance.value);
    this.running = new AbortController();
    const signal = AbortSignal.any([this.running.signal, this.signal]);
    this.draw.disabled = this.think.disabled = true;
    this.stop.disabled = false;
    await Promise.all(this.columns.map((column) => column.draw(body, thinkOnly, signal)));
    if (thinkOnly && this.columns[0].cots[0]) this.cot.value = this.columns[0].cots[0];
    this.draw.disabled = this.think.disabled = false;
    this.stop.disabled = true;
  }
}

// One model and what it draws.
class Column {
  constructor({ name, size, error }, number, take) {
    this.number = number;
    this.take = take;
    this.cots = [];
    this.state = el("p", { class: "quiet small", role: "status" }, error ?? "");
    this.images = el("div", { class: "drawn" });
    this.element = el("section", { class: "card model" },
      el("p", { class: "text-block" }, el("b", {}, name), size ? ` ${size}` : ""), this.state, this.images);
  }

  async draw(body, thinkOnly, outer) {
    const own = new AbortController();
    const signal = AbortSignal.any([own.signal, outer]);
    const cards = Array.from({ length: body.n }, () => new Card(this.take));
    this.cots = [];
    this.images.replaceChildren(...cards.map((card) => card.element));
    this.state.textContent = typeof body.cot === "string" ? "draws …" : "thinks …";
    let failed = "";
    try {
      await draw({ ...body, model: this.number }, (type, data) => {
        if (type === "error") failed = String(data.error?.message ?? "the model failed");
        const card = cards[data.index];
        if (!card) return;
        if (type === "image_generation.cot.delta") card.more(data.delta);
        if (type === "image_generation.cot.done") {
          card.whole(data.text);
          this.cots[data.index] = data.text;
          if (thinkOnly) own.abort();
        }
        if (type === "image_generation.partial_image") this.state.textContent = "draws …";
        if (data.b64_json) card.show(data.b64_json, type.endsWith("completed"));
        if (type === "image_generation.completed") card.whole(data.revised_prompt ?? "");
      }, signal);
      this.state.textContent = failed || `seed ${body.seed}`;
    } catch (error) {
      const thought = own.signal.aborted && !outer.aborted;
      this.state.textContent = thought ? "thought" : outer.aborted ? "stopped" : error.message;
    }
  }
}

class Card {
  constructor(take) {
    this.text = "";
    this.cot = textBlock("", "cot");
    this.picture = el("div", { class: "picture blank" });
    this.use = el("button", { hidden: true, onclick: () => take(this.text) }, "Change this CoT");
    this.element = el("article", { class: "card" }, this.picture, this.cot, this.use);
  }

  more(delta) {
    this.text += delta;
    this.cot.textContent = this.text;
  }

  whole(text) {
    this.text = text;
    this.cot.textContent = text;
    this.use.hidden = !text;
  }

  show(base64, done) {
    const shown = picture(`data:image/png;base64,${base64}`);
    shown.dataset.done = done;
    this.picture.replaceWith(shown);
    this.picture = shown;
  }
}
