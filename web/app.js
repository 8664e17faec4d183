// Pictures in, verdicts out. All words are in words.js; what one picture's answer looks like is in detail.js.

import { Problem, call } from "./api.js";
import { showDetail } from "./detail.js";
import { announceable, date, speak, text, translate } from "./i18n.js";
import { draw } from "./map.js";
import { exportCsv, showRows } from "./rows.js";

const AT_ONCE = 3;
const $ = (id) => document.getElementById(id);

// `served` is what /model says: undefined until the service was asked, null if it has no model.
// An item: file, url; later answer or problem; map and mapState for what was looked at; feedback.
const state = { items: [], selected: null, served: undefined, watching: 0, working: 0 };

function form(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return { method: "POST", body };
}

/** Take pictures in, and look at the first of them. */
function choose(files) {
  const items = [...(files ?? [])].map((file) => ({ file, url: URL.createObjectURL(file) }));
  if (!items.length || state.served === null) return;
  state.items.push(...items);
  select(items[0]);
  begin();
}

/** Judge what waits; pictures may come before the service has said what it serves. */
function begin() {
  while (state.served && state.working < AT_ONCE && waiting().length) work();
}

const waiting = () => state.items.filter((item) => !item.answer && !item.problem && !item.started);

/** Judge one picture after the other until none waits. */
async function work() {
  state.working += 1;
  for (let [item] = waiting(); item; [item] = waiting()) {
    item.started = true;
    await judge(item);
    if (item === state.selected) explain(item);
    announce(item);
    show();
  }
  state.working -= 1;
}

async function judge(item) {
  while (state.items.includes(item)) {
    try {
      if (item.file.size > state.served.limits.megabytes * 1e6) throw new Problem("too_large");
      item.answer = await call("predict", form({ image: item.file }));
      return;
    } catch (problem) {
      const later = ["busy", "too_many_requests", "no_model"].includes(problem.code);
      if (!later) {
        item.problem = problem;
        return;
      }
      if (problem.code === "no_model") watch();
      await new Promise((resolve) => setTimeout(resolve, 1000 * (problem.wait || 1)));
    }
  }
}

/** Ask where the model looked, once for each picture that is looked at. */
async function explain(item) {
  if (!item.answer || item.mapState) return;
  item.mapState = "mapWaiting";
  show();
  try {
    item.map = await call("explain", form({ image: item.file }));
    item.mapState = "mapNote";
  } catch {
    item.mapState = "mapFailed";
  }
  show();
}

function select(item) {
  state.selected = item;
  explain(item);
  show();
}

/** Bring the page to what `state` says. */
function show() {
  const { items, selected, served } = state;
  document.body.classList.toggle("judged", items.length > 0);
  $("no-model").hidden = served !== null;
  $("model").hidden = !served;
  for (const button of document.querySelectorAll("[data-choose]")) button.disabled = !served;
  for (const button of document.querySelectorAll("[data-card]")) button.disabled = !served;
  if (served) {
    const { megabytes, formats } = served.limits;
    $("model").textContent = text(served.version === "starter" ? "starterChip" : "modelChip", { version: served.version });
    $("model").title = date(served.created);
    $("limits").textContent = text("limits", { megabytes, formats: formats.join(", ") });
  }
  showRows(items, selected, select);
  showDetail(selected);
}

function announce(item) {
  const left = state.items.filter(({ answer, problem }) => !answer && !problem).length;
  if (state.items.length > 1) $("announce").textContent = text("progress", { done: state.items.length - left, all: state.items.length });
  else if (item.answer) $("announce").textContent = announceable(item.answer);
}

/** Ask which model is served, until there is one; and again now and then, because another may be promoted. */
async function watch() {
  clearTimeout(state.watching);
  let next = 30_000;
  try {
    state.served = await call("model");
  } catch (problem) {
    next = 2000;
    if (problem.code === "no_model") {
      state.served = null;
      $("no-model-detail").textContent = `${problem.message}. ${problem.hint}`;
    }
  }
  clearTimeout(state.watching);
  state.watching = setTimeout(watch, next);
  show();
  begin();
}

async function tell(event) {
  event.preventDefault();
  const item = state.selected, values = new FormData($("feedback"));
  const fields = { id: item.answer.id, label: values.get("label"), comment: values.get("comment") };
  if (values.has("keep")) Object.assign(fields, { keep_image: "true", image: item.file });
  try {
    await call("feedback", form(fields));
    item.feedback = "thanks";
  } catch {
    item.feedback = "failed";
  }
  show();
}

async function openCard() {
  const { fill } = await import("./card.js");
  await fill($("card-text"), "model/card");
  $("card").showModal();
}

for (const button of document.querySelectorAll("[data-choose]")) {
  const input = $(button.dataset.choose);
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    choose(input.files);
    input.value = "";  // the same file can be chosen again
  });
}
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => {
    speak(button.dataset.language);
    show();
  });
}
for (const button of document.querySelectorAll("[data-card]")) button.addEventListener("click", () => openCard().catch(() => button.remove()));
$("opacity").addEventListener("input", () => draw(state.selected));
$("feedback").addEventListener("submit", tell);
$("csv").addEventListener("click", () => exportCsv(state.items));
$("clear").addEventListener("click", () => {
  for (const item of state.items) URL.revokeObjectURL(item.url);
  Object.assign(state, { items: [], selected: null });
  show();
});
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText("make run");
  $("copy").textContent = text("copied");
});
addEventListener("paste", (event) => choose(event.clipboardData.files));
addEventListener("resize", () => draw(state.selected));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  choose(event.dataTransfer.files);
});

$("curl").textContent = `curl -F image=@photo.jpg ${location.origin}/predict`;
$("copy").hidden = !navigator.clipboard;
translate();
show();
watch();
