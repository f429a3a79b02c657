// Which view is shown, by the address behind "#"; a view is left by aborting its signal.

import { comparePage } from "./compare.js";
import { el } from "./dom.js";
import { playgroundPage } from "./playground.js";
import { runPage } from "./run.js";
import { runsPage } from "./runs.js";

const main = document.getElementById("main");
let leaving = new AbortController();

function show() {
  leaving.abort();
  leaving = new AbortController();
  const [view, ...rest] = location.hash.replace(/^#\/?/, "").split("?")[0].split("/");
  for (const link of document.querySelectorAll("nav a")) {
    const target = link.getAttribute("href").slice(2);
    link.classList.toggle("here", target === (view === "run" ? "" : view));
  }
  const page = el("div");
  main.replaceChildren(page);
  document.title = "bicot studio";
  const query = new URLSearchParams(location.hash.split("?")[1] ?? "");
  if (view === "run") runPage(page, decodeURIComponent(rest[0] ?? ""), leaving.signal);
  else if (view === "compare") comparePage(page, query, leaving.signal);
  else if (view === "playground") playgroundPage(page, leaving.signal);
  else runsPage(page, leaving.signal);
}

addEventListener("hashchange", show);
show();
