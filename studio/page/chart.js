// A line chart as SVG: it redraws in place, and shows values under the pointer.

import { COLORS, el, short, svg } from "./dom.js";

const HEIGHT = 170, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 20;

export class Chart {
  constructor(title, height = HEIGHT) {
    this.height = height;
    this.lines = [];
    this.at = null;
    this.drawing = svg("svg", { height, role: "img" });
    this.legend = el("div", { class: "legend" });
    this.element = el("div", { class: "card chart" }, title && el("h3", {}, title), this.drawing, this.legend);
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => { this.at = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(this.drawing);
  }

  // lines: [{name, steps, values}], in rising order of steps
  update(lines) {
    this.lines = lines.filter((line) => line.steps.length);
    this.draw();
  }

  point(event) {
    const { left } = this.drawing.getBoundingClientRect();
    if (!this.lines.length) return;
    this.at = this.low + ((event.clientX - left - LEFT) / this.inner) * (this.high - this.low);
    this.draw();
  }

  draw() {
    const width = this.drawing.clientWidth;
    this.drawing.replaceChildren();
    if (!width || !this.lines.length) {
      this.legend.textContent = this.lines.length ? "" : "nothing yet";
      return;
    }
    this.drawing.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.inner = width - LEFT - RIGHT;
    this.low = Math.min(...this.lines.map((line) => line.steps[0]));
    this.high = Math.max(this.low + 1, ...this.lines.map((line) => line.steps.at(-1)));
    const [bottom, top] = range(this.lines);
    const x = (step) => LEFT + ((step - this.low) / (this.high - this.low)) * this.inner;
    const y = (value) => TOP + ((top - value) / (top - bottom)) * (this.height - TOP - BOTTOM);
    this.axes(x, y, bottom, top, width);
    this.lines.forEach((line, n) => this.curve(line, n, x, y));
    this.readout(x, y);
  }

  axes(x, y, bottom, top, width) {
    for (const tick of ticks(bottom, top, 4)) {
      this.drawing.append(
        svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(tick), y2: y(tick) }),
        svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
    }
    for (const tick of ticks(this.low, this.high, 5).filter(Number.isInteger)) {
      this.drawing.append(
        svg("text", { x: x(tick), y: this.height - 5, "text-anchor": "middle" }, tick.toLocaleString("en")));
    }
  }

  curve(line, n, x, y) {
    const color = COLORS[n % COLORS.length];
    const path = line.steps.map((step, i) => `${x(step).toFixed(1)} ${y(line.values[i]).toFixed(1)}`);
    this.drawing.append(svg("path", { d: `M${path.join("L")}`, fill: "none", stroke: color, "stroke-width": 1.6 }));
    if (line.steps.length === 1 || /(^|: )(eval|bench)\//.test(line.name)) {
      line.steps.forEach((step, i) =>
        this.drawing.append(svg("circle", { cx: x(step), cy: y(line.values[i]), r: 2.6, fill: color })));
    }
  }

  // The value of each line at the step nearest to the pointer; without one, its last.
  readout(x, y) {
    const nearest = this.lines.map((line) => this.at == null ? line.steps.length - 1 : closest(line.steps, this.at));
    const step = this.at == null ? null
      : this.lines.map((line, n) => line.steps[nearest[n]])
        .sort((a, b) => Math.abs(a - this.at) - Math.abs(b - this.at))[0];
    if (step != null) {
      this.drawing.append(svg("line", { class: "cross", x1: x(step), x2: x(step), y1: TOP, y2: this.height - BOTTOM }));
    }
    const labels = this.lines.map((line, n) => {
      const swatch = el("span", { class: "swatch" });
      swatch.style.background = COLORS[n % COLORS.length];
      const value = line.values[nearest[n]];
      if (step != null) {
        this.drawing.append(svg("circle", {
          cx: x(line.steps[nearest[n]]), cy: y(value), r: 3.5, fill: COLORS[n % COLORS.length] }));
      }
      return el("span", {}, swatch, `${line.name} `, el("b", {}, short(value)));
    });
    if (step != null) labels.push(el("span", { class: "quiet" }, `step ${step.toLocaleString("en")}`));
    this.legend.replaceChildren(...labels);
  }
}

function range(lines) {
  let bottom = Infinity, top = -Infinity;
  for (const { values } of lines) {
    for (const value of values) {
      bottom = Math.min(bottom, value);
      top = Math.max(top, value);
    }
  }
  const room = (top - bottom) * 0.06 || Math.abs(top) * 0.1 || 1;
  return [bottom - room, top + room];
}

function ticks(low, high, about) {
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const gap = power * ([1, 2, 5, 10].find((m) => power * m >= raw * 0.7) ?? 10);
  const found = [];
  for (let i = Math.ceil(low / gap - 1e-9); i <= Math.floor(high / gap + 1e-9); i++) {
    found.push(Number((i * gap).toPrecision(12)));
  }
  return found;
}

function closest(steps, at) {
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] < at) low = middle; else high = middle;
  }
  return Math.abs(steps[low] - at) <= Math.abs(steps[high] - at) ? low : high;
}
