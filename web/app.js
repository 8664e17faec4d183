// One picture in, the verdict and the attention map out. All words are in i18n.js.

import { has, speak, text, translate } from "./i18n.js";

const MAX_BYTES = 20_000_000;
const $ = (id) => document.getElementById(id);

// Inferno, as in the legend: red, green, blue at even steps from cold to hot.
const COLOURS = [[0, 0, 4], [66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]];

// `served` is the version of the model: undefined until the service was asked, null if it has none.
const state = { judging: null, answer: null, map: null, mapState: null, problem: null, served: undefined, watching: 0 };

/** A problem that the page can put into words: `code` is the service's. */
class Problem extends Error {
  constructor(code, message = "", hint = "") {
    super(message);
    Object.assign(this, { code, hint });
  }
}

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem("network");
  }
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw new Problem(body.error?.code ?? "other", body.error?.message, body.error?.hint);
  return body;
}

function send(path, file, signal) {
  const body = new FormData();
  body.append("image", file);
  return call(path, { method: "POST", body, signal, headers: { Accept: "application/json" } });
}

/** Judge a picture; a newer one takes the place of one that is still under way. */
async function judge(file) {
  state.judging?.abort();
  const { signal } = (state.judging = new AbortController());
  Object.assign(state, { answer: null, map: null, mapState: "mapWaiting", problem: null });
  preview(file);
  show();
  try {
    if (file.size > MAX_BYTES) throw new Problem("too_large");
    state.answer = await send("predict", file, signal);
    announce(`${text(state.answer.verdict)}, ${percent(state.answer.probability_fake)} ${text("probability")}`);
    show();
    state.map = await send("explain", file, signal).catch((error) => {
      if (error.name === "AbortError") throw error;
      return null;
    });
    state.mapState = state.map ? "mapNote" : "mapFailed";
  } catch (error) {
    if (error.name === "AbortError") return;
    state.judging = null;
    if (error.code === "no_model") watch();
    else state.problem = error;
  }
  show();
}

function preview(file) {
  const image = $("preview");
  URL.revokeObjectURL(image.src);
  image.hidden = false;
  image.onload = drawMap;
  image.onerror = () => {
    image.hidden = true;
    $("unseen").hidden = false;
  };
  $("unseen").hidden = true;
  image.src = URL.createObjectURL(file);
  image.alt = file.name;
  $("name").textContent = file.name;
}

/** Bring the page to what `state` says. */
function show() {
  const { answer, problem } = state;
  const underWay = Boolean(state.judging) && !answer && !problem && state.served !== null;
  $("result").hidden = !underWay && !answer;
  $("drop").hidden = !$("result").hidden;
  document.body.classList.toggle("judged", !$("result").hidden);
  $("result").classList.toggle("judging", underWay);
  $("waiting").hidden = !underWay;
  $("said").hidden = !answer;
  $("error").hidden = !problem;
  $("no-model").hidden = state.served !== null;
  $("model").hidden = !state.served;
  for (const button of document.querySelectorAll("[data-choose]")) button.disabled = state.served === null;
  if (state.served) $("model").textContent = text("modelChip", { version: answer?.model.version ?? state.served });
  if (problem) {
    const known = has(`error_${problem.code}`);
    $("error-title").textContent = known ? text(`error_${problem.code}`) : problem.message || text("error_other");
    $("error-hint").textContent = known ? text(`hint_${problem.code}`) : problem.hint || text("hint_other");
  }
  if (answer) showAnswer(answer);
  $("map-note").textContent = state.mapState ? text(state.mapState) : "";
  $("opacity").disabled = !state.map;
  drawMap();
}

function showAnswer(answer) {
  const { real_below: low, fake_above: high } = answer.thresholds;
  const figure = percent(answer.probability_fake);
  $("verdict").textContent = text(answer.verdict);
  $("verdict").className = `verdict ${answer.verdict}`;
  $("percent").textContent = figure;
  $("bar").setAttribute("aria-label", text("barLabel", { percent: figure, low: percent(low), high: percent(high) }));
  $("zone-real").style.width = $("tick-real").style.left = `${low * 100}%`;
  $("zone-uncertain").style.width = `${(high - low) * 100}%`;
  $("tick-fake").style.left = `${high * 100}%`;
  $("needle").style.left = `${answer.probability_fake * 100}%`;
  $("legend-real").textContent = text("below", { bound: percent(low) });
  $("legend-uncertain").textContent = text("between", { low: percent(low), high: percent(high) });
  $("legend-fake").textContent = text("above", { bound: percent(high) });
  $("meaning").textContent = text("meaning", { percent: figure });
  $("warnings").replaceChildren(...answer.warnings.map((name) => element("li", has(`warning_${name}`) ? text(`warning_${name}`) : name)));
  const { version, run_id, data_md5, git_commit } = answer.model;
  const rows = { version, run: run_id, data: data_md5, commit: git_commit, request: answer.id };
  rows.time = text("milliseconds", { value: Math.round(answer.timing_ms) });
  const known = Object.entries(rows).filter(([, value]) => value);
  $("details").replaceChildren(...known.flatMap(([name, value]) => [element("dt", text(name)), element("dd", value)]));
}

function element(tag, content) {
  const made = document.createElement(tag);
  made.textContent = content;
  return made;
}

/** A share as a percentage that never says 0% or 100%: the model is never certain. */
function percent(share) {
  if (share < 0.001) return "< 0.1%";
  if (share > 0.999) return "> 99.9%";
  const digits = share < 0.1 || share > 0.9 ? 1 : 0;
  return `${(share * 100).toFixed(digits)}%`;
}

/** Lay the map over the picture, on the part of it that the model saw. */
function drawMap() {
  const canvas = $("map"), image = $("preview");
  canvas.hidden = !state.map || image.hidden || !image.naturalWidth;
  if (canvas.hidden) return;
  const { heat, region } = state.map;
  const cells = new ImageData(heat[0].length, heat.length);
  heat.flat().forEach((value, index) => cells.data.set([...colour(value), 255 * value ** 0.7], index * 4));
  const small = new OffscreenCanvas(cells.width, cells.height);
  small.getContext("2d").putImageData(cells, 0, 0);

  // `object-fit: contain` centres the picture in its box.
  const scale = Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
  const width = image.naturalWidth * scale, height = image.naturalHeight * scale;
  canvas.width = Math.round(width * region.width * devicePixelRatio);
  canvas.height = Math.round(height * region.height * devicePixelRatio);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  Object.assign(canvas.style, {
    left: `${image.offsetLeft + (image.clientWidth - width) / 2 + width * region.left}px`,
    top: `${image.offsetTop + (image.clientHeight - height) / 2 + height * region.top}px`,
    width: `${width * region.width}px`,
    height: `${height * region.height}px`,
    opacity: $("opacity").value / 100,
  });
}

function colour(value) {
  const place = value * (COLOURS.length - 1);
  const from = COLOURS[Math.floor(place)], to = COLOURS[Math.ceil(place)];
  return from.map((channel, index) => channel + (to[index] - channel) * (place % 1));
}

function announce(words) {
  $("announce").textContent = words;
}

/** Ask which model is served, until there is one. */
async function watch() {
  clearTimeout(state.watching);
  try {
    state.served = (await call("model")).version;
  } catch (error) {
    if (error.code === "no_model") {
      state.served = null;
      $("no-model-detail").textContent = `${error.message}. ${error.hint}`;
    }
    state.watching = setTimeout(watch, 2000);
  }
  show();
}

function choose(files) {
  if (files?.length && state.served !== null) judge(files[0]);
}

for (const button of document.querySelectorAll("[data-choose]")) button.addEventListener("click", () => $("file").click());
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => {
    speak(button.dataset.language);
    show();
  });
}
$("file").addEventListener("change", () => {
  choose($("file").files);
  $("file").value = "";  // the same file can be chosen again
});
$("opacity").addEventListener("input", drawMap);
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText("make run");
  $("copy").textContent = text("copied");
});
addEventListener("paste", (event) => choose(event.clipboardData.files));
addEventListener("resize", drawMap);
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
watch();
