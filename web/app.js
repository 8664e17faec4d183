// Pictures in, verdicts out. All words are in words.en.js and words.zh.js; what one picture's answer looks like is in detail.js.

import { call, keyed } from "./api.js";
import { fill } from "./card.js";
import { showDetail } from "./detail.js";
import { Problem, announceable, date, describe, say, speak, text } from "./i18n.js";
import { draw } from "./map.js";
import { exportCsv, mayPass, showRows } from "./rows.js";

const AT_ONCE = 3;
const LATER = ["busy", "too_many_requests", "no_model", "network"];
const ONCE = ["unsent", "gateway"];  // it happens as the service starts anew, too; twice, the picture or its way is to blame
const LONGEST = 60;  // a proxy may ask for hours of patience, and the service be back in seconds
const $ = (id) => document.getElementById(id);

// `served` is what /model says: undefined until the service was asked, null if it has no model or cannot be asked; why is `trouble`.
// `saved` is whether nothing was judged since the last CSV file.
// An item: file, url; later answer or problem, and held, the problem that it waits for to pass; map and mapState for what was looked at;
// telling, told or tellProblem for feedback.
const state = { items: [], selected: null, served: undefined, trouble: null, watching: 0, working: 0, saved: true };

function form(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return { method: "POST", body };
}

/** Take pictures in, and look at the first of them. */
function choose(files) {
  const items = [...(files ?? [])].map((file) => ({ file, url: URL.createObjectURL(file) }));
  if (!items.length) return;
  $("refused").hidden = true;
  state.items.push(...items);
  select(items[0]);
  begin();
}

/** The files of a drop or a paste. A folder among them would be one that cannot be read; where there are no others, it is said. */
function unpack({ items }) {
  const all = [...items].filter(({ kind }) => kind === "file");
  const files = all.filter((item) => !item.webkitGetAsEntry()?.isDirectory).map((item) => item.getAsFile());
  $("refused").dataset.i18n = all.length ? "folders" : "noFile";
  say("refused", text($("refused").dataset.i18n));
  $("refused").hidden = files.length > 0;
  return files;
}

/** Judge what waits; pictures may come before the service has said what it serves, and while it is away. */
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
    if (!state.items.includes(item)) continue;  // it was cleared away meanwhile
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

/** What the service answers to a picture, however long it has to be waited for; nothing if the picture was taken away. Throws Problem. */
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

/** What is behind a problem: where nothing was answered the service is away or, if it can be asked, this one upload did not get through. */
async function cause(problem) {
  if (["no_model", "network", "gateway"].includes(problem.code)) await watch();
  const meant = (state.trouble ? { gateway: "network" } : { network: "unsent" })[problem.code];
  return meant ? new Problem(meant, "", "", problem.wait) : problem;
}

/** Ask for the heat map of a picture that is looked at, unless it is there or on its way. */
async function explain(item) {
  if (!item.answer || item.map || item.mapState === "mapWaiting") return;
  item.mapState = "mapWaiting";
  show();
  // The first map of some networks waits for PyTorch, which on a busy machine takes longer than the service lets it; the second does not.
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

/** Judge pictures once more, which failed. */
function again(items) {
  for (const item of items) Object.assign(item, { problem: null, started: false });
  select(state.selected);
  begin();
}

/** Look at a picture of the list, and see to it that there is something to see: on a phone the list fills the screen. */
function pick(item) {
  select(item);
  const shown = $(item.problem ? "error" : "result");
  if (shown.getBoundingClientRect().top > innerHeight * 0.75) shown.scrollIntoView({ block: "nearest" });
}

/** Bring the page to what `state` says. */
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
    $("limits").textContent = text("limits", { megabytes, formats: formats.join(", ") });
  }
  const key = keyed() ? '-H "Authorization: Bearer $UNMASK_KEY" ' : "";
  $("curl").textContent = `curl ${key}-F image=@photo.jpg ${location.origin}/predict`;
  showRows(items, selected, pick);
  showDetail(selected);
}

/** Say why nothing can be judged now, and that it goes on by itself. */
function showTrouble(trouble) {
  const { title, hint } = describe(trouble), untrained = trouble.code === "no_model";
  say("trouble-title", title);
  say("trouble-hint", hint);
  $("make-run").hidden = !untrained;
  say("trouble-detail", untrained ? [trouble.message, trouble.hint].filter(Boolean).join(". ") : text("goesOn"));
}

/** Tell who does not see the page: of many pictures each tenth of them, because a screen reader reads out all that it is told. */
function announce(item) {
  const { items } = state, done = items.filter(({ answer, problem }) => answer || problem).length;
  if (items.length > 1 && (done === items.length || done % Math.ceil(items.length / 10) === 0)) $("announce").textContent = text("progress", { done, all: items.length });
  else if (items.length === 1 && item.answer) $("announce").textContent = announceable(item.answer);
}

/** Ask which model is served, until there is one; and again now and then, because another may be promoted. */
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

/** Whether answers to many pictures are nowhere else. */
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
    input.value = "";  // the same file can be chosen again
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
  if (wouldBeLost()) event.preventDefault();  // the browser asks
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
  // What office programs copy is text and a picture of it.
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
