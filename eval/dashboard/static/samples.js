// Samples: cards to filter and sort, and one sample in full with its worst action marked.
import { ask, badge, decimals, el, runPath, svg } from "./dom.js";

const ORDERS = { step: "newest", reward: "lowest reward", difference: "largest |Δp|" };
const FILTERS = { all: "all", dropped: "dropped", failed: "reward failed", kept: "kept" };
const PER_PAGE = 60;
const view = { run: null, order: "step", only: "all", offset: 0 };

export async function showSamples(page, route, again) {
  if (view.run !== route.run) Object.assign(view, { run: route.run, order: "step", only: "all", offset: 0 });
  const data = await ask(`${runPath(route.run)}/samples`, { order: view.order, only: view.only, offset: view.offset });
  const choose = (key, value) => { view[key] = value; if (key !== "offset") view.offset = 0; again(); };
  page.replaceChildren(
    el(
      "div",
      { class: "tools" },
      choice("Show", FILTERS, view.only, (value) => choose("only", value)),
      choice("Order", ORDERS, view.order, (value) => choose("order", value)),
      pager(data, (offset) => choose("offset", offset)),
    ),
    data.samples.length
      ? el("div", { class: "cards" }, data.samples.map((entry) => card(entry, route.run)))
      : el("p", { class: "soft empty" }, data.total || view.only !== "all" ? "No such sample." : "No sample was kept yet; run.sample_steps says how often they are."),
    el("p", { class: "note" }, "Every run.sample_steps steps all samples are kept, in between those that a filter dropped or a reward failed on. |Δp| is the largest difference between sampler and actor in the probability of one action."),
  );
}

function choice(label, options, chosen, choose) {
  return el("div", { class: "choice", role: "group", "aria-label": label }, Object.entries(options).map(([value, text]) =>
    el("button", { type: "button", "data-value": value, "aria-pressed": String(value === chosen), onclick: () => choose(value) }, text)));
}

function pager(data, choose) {
  const last = data.offset + data.samples.length;
  return el(
    "div",
    { class: "pager" },
    el("span", { class: "soft" }, data.total ? `${data.offset + 1}–${last} of ${data.total}` : ""),
    el("button", { type: "button", disabled: data.offset === 0, onclick: () => choose(Math.max(0, data.offset - PER_PAGE)) }, "‹ before"),
    el("button", { type: "button", disabled: last >= data.total, onclick: () => choose(last) }, "next ›"),
  );
}

function card(entry, run) {
  return el(
    "button",
    { type: "button", class: "sample card", "data-number": entry.number, onclick: () => openSample(run, entry.number) },
    entry.picture || entry.question
      ? el("img", { src: pictureOf(run, entry.picture ?? entry.question), alt: "", loading: "lazy" })
      : null,
    el("span", { class: "row" }, badge(entry.verdict), el("span", { class: "soft" }, `step ${entry.step}`)),
    el("span", { class: "row" }, el("span", {}, "reward ", el("b", {}, decimals(entry.reward))), el("span", { class: "soft" }, `|Δp| ${decimals(entry.difference, 2)}`)),
    entry.answer !== null ? el("span", { class: "said" }, `“${entry.answer}”`) : null,
    el("span", { class: "prompt" }, entry.prompt),
  );
}

export async function openSample(run, number) {
  const entry = await ask(`${runPath(run)}/samples/${number}`);
  const dialog = document.getElementById("sample");
  const close = () => dialog.close();
  dialog.replaceChildren(...[
    el("div", { class: "row head" }, badge(entry.verdict), el("span", { class: "soft" }, `step ${entry.step} · ${entry.tag}`), el("button", { type: "button", class: "close", onclick: close, "aria-label": "Close" }, "×")),
    el("h2", {}, entry.prompt),
    picture(run, entry),
    entry.answer !== null ? answer(entry) : null,
    el("ul", { class: "reasons" }, entry.verdict.reasons.map((reason) => el("li", { class: entry.verdict.kind }, reason))),
    worst(entry),
    scores(entry),
    facts(entry),
  ].filter(Boolean));
  if (!dialog.open) dialog.showModal();
  dialog.onclick = (event) => { if (event.target === dialog) close(); };
}

function picture(run, entry) {
  if (!entry.picture && !entry.question) return null;
  const image = el("img", { src: pictureOf(run, entry.picture ?? entry.question), alt: entry.prompt });
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth <= 128));
  const parts = [image];
  if (entry.picture && entry.grid) parts.push(grid(entry.grid, entry.worst));
  return el("div", { class: "picture" }, parts);
}

function grid([rows, columns], worst) {
  const lines = [];
  for (let row = 1; row < rows; row += 1) lines.push(`M0 ${row}H${columns}`);
  for (let column = 1; column < columns; column += 1) lines.push(`M${column} 0V${rows}`);
  const drawing = svg("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", class: "marks", "aria-hidden": "true" }, svg("path", { d: lines.join("") }));
  if (worst && worst.row !== null) {
    drawing.append(svg("rect", { x: worst.column, y: worst.row, width: 1, height: 1, class: "worst" }));
  }
  return drawing;
}

function answer(entry) {
  const span = entry.worst?.span;
  const text = entry.answer;
  if (!span || span[0] === span[1]) return el("p", { class: "answer-text" }, text);
  return el("p", { class: "answer-text" }, text.slice(0, span[0]), el("mark", { class: "worst" }, text.slice(...span)), text.slice(span[1]));
}

function worst(entry) {
  const action = entry.worst;
  if (!action) return null;
  const place = action.row !== null
    ? `${action.channel.replace("_", " ")}, row ${action.row + 1}, column ${action.column + 1}`
    : `token “${action.token ?? ""}”`;
  return el(
    "div",
    { class: "worst-action", id: "worst-action" },
    el("h3", {}, "Worst action"),
    el("p", {}, `${place}, position ${action.position}: `, el("b", {}, `|Δp| ${decimals(action.difference)}`)),
    el("div", { class: "probabilities" }, [["sampler", action.p_sampler], ["actor", action.p_actor]].map(([who, value]) => [
      el("span", {}, who),
      el("span", { class: "track" }, el("span", { style: `width:${100 * (value ?? 0)}%` })),
      el("span", {}, decimals(value)),
    ])),
  );
}

function scores(entry) {
  const rows = Object.entries(entry.scores).map(([name, score]) => el(
    "tr",
    {},
    el("th", { scope: "row" }, name),
    el("td", {}, score.failed ? el("span", { class: "badge bad" }, "failed") : decimals(score.score)),
    el("td", { class: "wrap soft" }, score.reason),
  ));
  return el("div", {}, el("h3", {}, "Rewards"), el("table", {}, el("tbody", {}, rows, el("tr", { class: "total" }, el("th", { scope: "row" }, "trained on"), el("td", {}, decimals(entry.reward)), el("td")))));
}

function facts(entry) {
  const rows = {
    "prompt": entry.id,
    "mean entropy of its actions": `${decimals(entry.entropy)} nats`,
    "ended by": entry.finish_reason === "length" ? "the length limit" : "itself",
    "weights": `version ${entry.weight_version}`,
    "seed": String(entry.seed),
    "group, sample": `${entry.group}, ${entry.index}`,
  };
  return el("table", { class: "facts" }, el("tbody", {}, Object.entries(rows).map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "wrap" }, value)))));
}

function pictureOf(run, path) {
  return `/api/${runPath(run)}/pictures/${path}`;
}
