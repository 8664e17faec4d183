// The page: images in, verdicts out. All its words are in words.en.js and words.zh.js; detail.js shows the answer to one image.

import { call, keyed } from "./api.js";
import { fill } from "./card.js";
import { showDetail } from "./detail.js";
import { Problem, announceable, date, describe, say, speak, text } from "./i18n.js";
import { draw } from "./map.js";
import { exportCsv, mayPass, showRows } from "./rows.js";

const AT_ONCE = 3;
const LATER = ["busy", "too_many_requests", "no_model", "network"];
const ONCE = ["unsent", "gateway"];  // may happen while the service restarts; the second time, the image or the network is to blame
const LONGEST = 60;  // seconds: a proxy may ask for hours, although the service is back in seconds
const $ = (id) => document.getElementById(id);

// `served` is the answer of /model: undefined before the first, null if there is no model or no answer; `trouble` says why.
// `saved` is whether nothing was judged since the last CSV export.
// An item: file, url; later answer or problem, and `held`, the problem that it waits out; map and mapState once it was selected;
// telling, told or tellProblem for feedback.
const state = { items: [], selected: null, served: undefined, trouble: null, watching: 0, working: 0, saved: true };

function form(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return { method: "POST", body };
}

/** Add images, and select the first of them. */
function choose(files) {
  const items = [...(files ?? [])].map((file) => ({ file, url: URL.createObjectURL(file) }));
  if (!items.length) return;
  $("refused").hidden = true;
  state.items.push(...items);
  select(items[0]);
  begin();
}

/** The files of a drop or a paste, without folders, which cannot be read. If nothing is left, the page says why. */
function unpack({ items }) {
  const all = [...items].filter(({ kind }) => kind === "file");
  const files = all.filter((item) => !item.webkitGetAsEntry()?.isDirectory).map((item) => item.getAsFile());
  $("refused").dataset.i18n = all.length ? "folders" : "noFile";
  say("refused", text($("refused").dataset.i18n));
  $("refused").hidden = files.length > 0;
  return files;
}

/** Judge what waits: images may be added before the first answer of /model, and while the service is unavailable. */
function begin() {
  while (state.served && state.working < AT_ONCE && waiting().length) work();
}

const waiting = () => state.items.filter((item) => !item.answer && !item.problem && !item.started);

/** Judge one image after the other until none waits. */
async function work() {
  state.working += 1;
  for (let [item] = waiting(); item; [item] = waiting()) {
    item.started = true;
    await judge(item);
    if (!state.items.includes(item)) continue;  // the list was cleared meanwhile
    state.saved = false;
    if (item === state.selected) explain(item);
    announce(item);
    show();
  }
  state.working -= 1;
}

async function judge(item) {
  try {
    if (item.file.size > state.served?.limits.megabytes * 1e6) throw new Problem("too_large");
    item.answer = await ask("predict", item);
  } catch (problem) {
    item.problem = problem;
  }
}

/** The service's answer to an image, retried for as long as it takes; undefined if the image was removed. Throws Problem. */
async function ask(path, item) {
  let before = null;
  while (state.items.includes(item)) {
    try {
      return await call(path, form({ image: item.file }));
    } catch (error) {
      const problem = await cause(error);
      if (!LATER.includes(problem.code) && (!ONCE.includes(problem.code) || before === problem.code)) throw problem;
      before = problem.code;
      item.held = state.trouble ? null : problem;
      show();
      do {
        await new Promise((resolve) => setTimeout(resolve, 1000 * Math.min(problem.wait || 1, LONGEST)));
      } while (state.trouble);
      item.held = null;
      show();
    }
  }
}

/** The cause of a problem: without an answer, either the service is unavailable or, if it answers /model, only this upload failed. */
async function cause(problem) {
  if (["no_model", "network", "gateway"].includes(problem.code)) await watch();
  const meant = (state.trouble ? { gateway: "network" } : { network: "unsent" })[problem.code];
  return meant ? new Problem(meant, "", "", problem.wait) : problem;
}

/** Request the heat map of the selected image, unless it is there or on its way. */
async function explain(item) {
  if (!item.answer || item.map || item.mapState === "mapWaiting") return;
  item.mapState = "mapWaiting";
  show();
  // For some networks the first map imports PyTorch, which on a busy machine exceeds the service's timeout; the second does not.
  for (let tries = 2; tries > 0; tries -= 1) {
    try {
      item.map = await ask("explain", item);
      break;
    } catch (problem) {
      if (problem.code !== "timeout") break;
    }
  }
  item.mapState = item.map ? "" : "mapFailed";
  show();
}

function select(item) {
  state.selected = item;
  explain(item);
  show();
}

/** Judge failed images again. */
function again(items) {
  for (const item of items) Object.assign(item, { problem: null, started: false });
  select(state.selected);
  begin();
}

/** Select an image in the list, and scroll to its answer: on a phone the list fills the screen. */
function pick(item) {
  select(item);
  const shown = $(item.problem ? "error" : "result");
  if (shown.getBoundingClientRect().top > innerHeight * 0.75) shown.scrollIntoView({ block: "nearest" });
}

/** Update the page to `state`. */
function show() {
  const { items, selected, served, trouble } = state;
  document.body.classList.toggle("judged", items.length > 0);
  $("trouble").hidden = !trouble;
  if (trouble) showTrouble(trouble);
  $("model").hidden = !served;
  for (const button of document.querySelectorAll("[data-card]")) button.disabled = !served;
  if (served) {
    const { megabytes, formats } = served.limits;
    $("model").textContent = text(served.version === "starter" ? "starterChip" : "modelChip", { version: served.version });
    $("model").title = date(served.created);
    const framed = text(served.face_detector ? "framedFaces" : "framedWhole");
    $("limits").textContent = text("limits", { megabytes, formats: formats.join(", "), framed });
  }
  const key = keyed() ? '-H "Authorization: Bearer $UNMASK_KEY" ' : "";
  $("curl").textContent = `curl ${key}-F image=@photo.jpg ${location.origin}/predict`;
  showRows(items, selected, pick);
  showDetail(selected);
}

/** Say why nothing can be judged now, and that judging resumes by itself. */
function showTrouble(trouble) {
  const { title, hint } = describe(trouble), untrained = trouble.code === "no_model";
  say("trouble-title", title);
  say("trouble-hint", hint);
  $("make-run").hidden = !untrained;
  say("trouble-detail", untrained ? [trouble.message, trouble.hint].filter(Boolean).join(". ") : text("goesOn"));
}

/** Announce progress to screen readers: with many images, only every tenth of the way, because every announcement is read out. */
function announce(item) {
  const { items } = state, done = items.filter(({ answer, problem }) => answer || problem).length;
  if (items.length > 1 && (done === items.length || done % Math.ceil(items.length / 10) === 0)) $("announce").textContent = text("progress", { done, all: items.length });
  else if (items.length === 1 && item.answer) $("announce").textContent = announceable(item.answer);
}

/** Ask which model is served: often until there is one, then now and then, because another may be promoted. */
async function watch() {
  clearTimeout(state.watching);
  try {
    Object.assign(state, { served: await call("model"), trouble: null });
  } catch (problem) {
    Object.assign(state, { served: null, trouble: problem });
  }
  clearTimeout(state.watching);
  state.watching = setTimeout(watch, state.trouble ? 2000 : 30_000);
  show();
  begin();
}

/** Whether answers to several images exist only on this page. */
const wouldBeLost = () => state.items.length > 1 && !state.saved;

async function tell(event) {
  event.preventDefault();
  const item = state.selected, values = new FormData($("feedback"));
  const fields = { id: item.answer.id, label: values.get("label"), comment: values.get("comment") };
  if (values.has("keep")) Object.assign(fields, { keep_image: "true", image: item.file });
  Object.assign(item, { telling: true, tellProblem: null });
  show();
  try {
    await call("feedback", form(fields));
    item.told = true;
  } catch (problem) {
    item.tellProblem = problem;
  }
  item.telling = false;
  show();
}

async function openCard() {
  say("card-problem", "");
  try {
    await fill($("card-text"), "model/card");
    $("card").showModal();
  } catch (problem) {
    $("card-text").replaceChildren();
    $("card").showModal();
    const { title, hint } = describe(problem);
    say("card-problem", `${title} ${hint}`);
  }
}

for (const button of document.querySelectorAll("[data-choose]")) {
  const input = $(button.dataset.choose);
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    choose(input.files);
    input.value = "";  // so that the same file can be chosen again
  });
}
for (const button of document.querySelectorAll("[data-card]")) button.addEventListener("click", openCard);
$("opacity").addEventListener("input", () => draw(state.selected));
$("feedback").addEventListener("submit", tell);
$("again").addEventListener("click", () => again([state.selected]));
$("again-all").addEventListener("click", () => again(state.items.filter(mayPass)));
$("csv").addEventListener("click", () => {
  exportCsv(state.items);
  state.saved = true;
});
addEventListener("beforeunload", (event) => {
  if (wouldBeLost()) event.preventDefault();  // the browser asks for confirmation
});
$("clear").addEventListener("click", () => {
  if (wouldBeLost() && !confirm(text("clearAsk"))) return;
  for (const item of state.items) URL.revokeObjectURL(item.url);
  Object.assign(state, { items: [], selected: null, saved: true });
  show();
});
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText("make run");
  $("copy").textContent = text("copied");
});
addEventListener("paste", (event) => {
  // Office programs copy text together with an image of it.
  if (!event.target.matches?.("textarea, input") || !event.clipboardData.types.includes("text/plain")) choose(unpack(event.clipboardData));
});
addEventListener("resize", () => draw(state.selected));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dragging");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  choose(unpack(event.dataTransfer));
});

$("copy").hidden = !navigator.clipboard;
speak(show);
show();
watch();
