// Where the page is, and what is new: the address says run and page, and the server is asked again and again.
import { ask, el } from "./dom.js";
import { showCompare } from "./compare.js";
import { showMetrics } from "./metrics.js";
import { showCurves } from "./panels.js";
import { showSamples } from "./samples.js";

const PAGES = { overview: "Overview", stability: "Stability", samples: "Samples", speed: "Speed", compare: "Compare", metrics: "Metrics" };
const RANGES = [["all", "all steps"], ["1000", "last 1000"], ["100", "last 100"]];
const EVERY = 2000;
const page = document.getElementById("page");
const now = { runs: [], range: "all", version: "", framed: "", drawing: false, again: false };

function route() {
  const [run, name, part] = location.hash.replace(/^#\//, "").split("/").map(decodeURIComponent);
  const known = now.runs.some((entry) => entry.name === run);
  return { run: known ? run : now.runs[0]?.name, page: name in PAGES ? name : "overview", part };
}

async function draw() {
  const here = route();
  if (!here.run) return;
  now.again = now.drawing;
  if (now.drawing) return;
  now.drawing = true;
  try {
    if (here.page === "samples") await showSamples(page, here, draw);
    else if (here.page === "compare") await showCompare(page, here, now.runs);
    else if (here.page === "metrics") await showMetrics(page, here);
    else await showCurves(page, here, stepsOf(here.run));
    page.dataset.page = here.page;
  } catch (error) {
    page.replaceChildren(el("p", { class: "card error" }, `The dashboard's server does not answer as it should: ${error.message}`));
  } finally {
    now.drawing = false;
    if (now.again) await draw();
  }
}

function stepsOf(name) {
  const step = now.runs.find((run) => run.name === name)?.step ?? 0;
  return now.range === "all" ? {} : { first: Math.max(0, step - Number(now.range) + 1) };
}

function frame() {
  const here = route();
  const run = now.runs.find((entry) => entry.name === here.run);
  const { samples, version, ...shown } = run;
  const key = JSON.stringify([here, shown, now.range, now.runs.map((entry) => entry.name)]);
  if (key === now.framed) return;
  now.framed = key;
  document.title = `${run.health === "sick" ? "⚠ " : ""}${here.run} · ${PAGES[here.page]} · dina`;
  const select = document.getElementById("run");
  select.replaceChildren(...now.runs.map((entry) => el("option", { value: entry.name, selected: entry.name === here.run }, entry.name)));
  select.disabled = now.runs.length < 2;
  select.onchange = () => { location.hash = `#/${encodeURIComponent(select.value)}/${here.page}`; };
  const steps = run.max_steps ? `step ${run.step} of ${run.max_steps}` : `step ${run.step}`;
  document.getElementById("state").replaceChildren(
    el("i", { class: `dot ${run.state} ${run.health}` }),
    run.state,
    el("span", { class: "soft" }, ` ${steps}${run.complete ? "" : ", reading …"}`),
  );
  document.getElementById("tabs").replaceChildren(...Object.entries(PAGES).map(([name, title]) => el("a", {
    href: `#/${encodeURIComponent(here.run)}/${name}`, "aria-current": name === here.page ? "page" : null,
  }, title, name === "overview" && run.alerts ? el("span", { class: `count ${run.health}` }, String(run.alerts)) : null)));
  const range = document.getElementById("range");
  range.hidden = !["overview", "stability", "speed"].includes(here.page) || run.step <= 100;
  range.replaceChildren(...RANGES.map(([value, text]) => el("button", {
    type: "button", "aria-pressed": String(value === now.range), onclick: () => { now.range = value; frame(); draw(); },
  }, text)));
}

async function look() {
  let wait = EVERY;
  try {
    if (!document.hidden || !now.runs.length) {
      now.runs = await ask("runs");
      const here = route();
      const shown = here.page === "compare" ? now.runs : now.runs.filter((run) => run.name === here.run);
      const version = `${location.hash} ${shown.map((run) => run.version).join(" ")}`;
      frame();
      // A still page is not torn from under a reader.
      if (version !== now.version && !document.getElementById("sample").open) {
        now.version = version;
        await draw();
      }
      if (now.runs.some((run) => !run.complete)) wait = EVERY / 8;
    }
  } catch {
    document.getElementById("state").textContent = "the dashboard's server has gone";
  }
  setTimeout(look, wait);
}

window.addEventListener("hashchange", () => { frame(); window.scrollTo(0, 0); draw(); });
look();
