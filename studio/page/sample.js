// A sample with its picture, prompt, semantic CoT and every expert's score.

import { el, picture, textBlock, short } from "./dom.js";
import { pictureUrl } from "./server.js";

export function sampleCard(row, folder, withBoxes, expert) {
  const boxes = expert ? row.boxes[expert] ?? [] : Object.values(row.boxes).flat();
  return el("article", { class: "card sample" },
    picture(pictureUrl(`${folder}/${row.image}`), withBoxes ? boxes : []),
    textBlock(row.prompt), textBlock(row.cot, "cot"), scoreTable({ reward: row.reward, ...row.scores }, row.explanation));
}

export function scoreTable(scores, explanation) {
  return el("table", { class: "scores" }, ...Object.entries(scores).map(([name, score]) => el("tr", {},
    el("td", {}, name), el("td", { class: "number" }, short(score)), el("td", { class: "long" }, textBlock(explanation[name] ?? "", "quiet")))));
}
