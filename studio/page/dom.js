// Elements made of text alone: whatever a prompt or a model's output holds stays text.

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== ""));
  return element;
}

export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export const textBlock = (text, more = "") => el("p", { class: `text-block ${more}`, dir: "auto" }, text);

export function options(select, pairs, chosen) {
  select.replaceChildren(...pairs.map(([value, text]) =>
    el("option", { value, selected: value === chosen }, text)));
  if (!pairs.some(([value]) => value === chosen) && pairs.length) select.value = pairs[0][0];
}

export function short(value) {
  if (value == null) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e5) return value.toExponential(1).replace("e+", "e");
  return String(Number(value.toFixed(size < 10 ? 3 : size < 1000 ? 1 : 0)));
}

export function ago(seconds) {
  const past = Math.max(0, Date.now() / 1000 - seconds);
  if (past < 90) return `${Math.round(past)} s ago`;
  if (past < 5400) return `${Math.round(past / 60)} min ago`;
  if (past < 129600) return `${Math.round(past / 3600)} h ago`;
  return `${Math.round(past / 86400)} days ago`;
}

// A picture; one of few pixels is shown as the squares that it is made of. Boxes in parts of its size.
export function picture(src, boxes = []) {
  const image = el("img", { src, alt: "", loading: "lazy", onload: () =>
    image.classList.toggle("tiny", image.naturalWidth <= 64) });
  const frame = el("div", { class: "picture" }, image);
  if (boxes.length) {
    const drawn = svg("svg", { viewBox: "0 0 1 1", preserveAspectRatio: "none" });
    const labels = [...new Set(boxes.map((box) => box.label))];
    for (const { label, xyxy: [left, top, right, bottom] } of boxes) {
      drawn.append(svg("rect", {
        x: Math.min(left, right), y: Math.min(top, bottom),
        width: Math.abs(right - left), height: Math.abs(bottom - top),
        fill: "none", stroke: COLORS[labels.indexOf(label) % COLORS.length],
        "stroke-width": 2, "vector-effect": "non-scaling-stroke",
      }, svg("title", {}, label)));
    }
    frame.append(drawn);
  }
  return frame;
}

export const COLORS = ["#2f6690", "#c8553d", "#3a8f5c", "#8a5fa8", "#c08a1e", "#4aa3a2", "#a04668", "#6b7078"];
