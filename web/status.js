// The status page for operators: /model, /metrics and /drift in plain words.

import { call, request } from "./api.js";
import { Problem, date, describe, has, say, speak, text } from "./i18n.js";

const SECONDS = 10;
const DAY = 24 * 3600 * 1000;
const QUANTILES = [0.5, 0.9, 0.99];
const $ = (id) => document.getElementById(id);
const EXPECTED = ["no_model", "no_report"];  // errors that are answers: they say something about the service
// `seen` is when everything was last answered, `failed` why it is not now. The drift report may fail on its own.
let known = { samples: [] };

async function look() {
  const [model, metrics, drift] = await Promise.allSettled([call("model"), request("metrics", { headers: { Accept: "text/plain" } }).then((found) => found.text()), call("drift").then(checkedReport)]);
  const failed = unexpected(model) ?? unexpected(metrics);
  if (failed) known.failed = failed;
  else known = { model: model.value, problem: model.reason, samples: parse(metrics.value), drift: drift.value, driftFailed: unexpected(drift), seen: new Date() };
  setTimeout(look, 1000 * SECONDS);
  show();
}

/** Returns its argument if that is a drift report: the service passes on a file unchecked. Throws Problem. */
function checkedReport(found) {
  const { drift, p_value, checked } = found ?? {};
  if (typeof drift === "boolean" && Number.isFinite(p_value) && Date.parse(checked)) return found;
  throw new Problem("other");
}

/** Why a request failed, unless the error is an expected answer. */
const unexpected = ({ reason }) => (reason && !EXPECTED.includes(reason.code) ? reason : null);

/** The samples in Prometheus' text format: name, labels, value. */
function parse(content) {
  const samples = [];
  for (const line of content.split("\n")) {
    const found = line.match(/^(\w+)(?:\{(.*)\})? (\S+)$/);
    if (!found) continue;
    const labels = Object.fromEntries([...(found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, name, value]) => [name, value]));
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

/** Sums of a metric's samples, grouped by `key` of their labels. */
function sums(name, key) {
  const found = new Map();
  for (const sample of known.samples) {
    if (sample.name === name) found.set(key(sample.labels), (found.get(key(sample.labels)) ?? 0) + sample.value);
  }
  return found;
}

/** The upper bound of the bucket that contains a quantile; null without samples. */
function quantile(buckets, share) {
  const sorted = [...buckets].map(([bound, count]) => [bound === "+Inf" ? Infinity : Number(bound), count]).sort(([a], [b]) => a - b);
  const all = sorted.at(-1)?.[1] ?? 0;
  return all ? sorted.find(([, count]) => count >= share * all)[0] : null;
}

function show() {
  const { model, problem, seen, failed } = known;
  $("failed").hidden = !failed;
  if (failed) {
    const { title, hint } = describe(failed);
    say("failed-title", title);
    say("failed-hint", hint);
    say("failed-since", seen ? text("statusOld", { date: date(seen, true) }) : "");
  }
  $("tiles").hidden = !seen;
  $("tiles").classList.toggle("old", Boolean(failed));
  if (!seen) return;
  $("model-version").textContent = model ? text(model.version === "starter" ? "starterChip" : "modelChip", { version: model.version }) : text("error_no_model");
  say("trouble", model ? model.trouble ?? text("statusWell") : [problem.message, problem.hint].filter(Boolean).join(". "));
  list("model-facts", model ? [[text("made"), date(model.created, true)], [text("statusRuntime"), model.runtime],
    [text("statusFaces"), text(model.face_detector ? "statusFacesOn" : "statusFacesOff")], ...challenger(model)] : []);

  const verdicts = sums("unmask_predictions_total", (labels) => labels.verdict);
  const all = [...verdicts.values()].reduce((sum, value) => sum + value, 0);
  const kinds = ["real", "uncertain", "fake"].map((kind) => ({ kind, share: all ? (verdicts.get(kind) ?? 0) / all : 0 }));
  $("shares").replaceChildren(...kinds.map(({ kind, share }) => {
    const zone = document.createElement("i");
    zone.className = `zone ${kind}`;
    zone.style.width = `${share * 100}%`;
    return zone;
  }));
  const named = kinds.map(({ kind, share }) => [kind, `${text(kind)} ${all ? `${(share * 100).toFixed(1)}%` : "–"}`]);
  $("shares").setAttribute("aria-label", named.map(([, said]) => said).join(", "));
  $("verdicts").replaceChildren(...named.map(([kind, said]) => Object.assign(document.createElement("li"), { className: kind, textContent: said })));
  $("answers").textContent = text("statusAnswers", { value: all });

  const buckets = sums("unmask_prediction_seconds_bucket", (labels) => labels.le);
  list("latency", QUANTILES.map((share) => {
    const value = quantile(buckets, share);
    return [text("statusQuantile", { share: `${share * 100}%` }), value === null ? "–" : text("statusSeconds", { value: value === Infinity ? "> 10" : value })];
  }));

  // This page itself causes `no_report`, by asking for a drift report before there is one.
  const errors = [...sums("unmask_errors_total", (labels) => labels.code)].filter(([code, count]) => count && code !== "no_report");
  const meaning = (code) => (has(`error_${code}`) ? `${text(`error_${code}`)} (${code})` : code);
  list("errors", errors.sort(([, a], [, b]) => b - a).map(([code, count]) => [meaning(code), count]));
  $("no-errors").textContent = errors.length ? "" : text("statusNoErrors");
  const told = sums("unmask_feedback_total", ({ verdict, label }) => text("statusTold", { verdict: text(verdict), label: text(`label_${label}`) }));
  list("told", [...told]);
  $("no-feedback").textContent = told.size ? "" : text("statusNone");

  showDrift();
}

/** A row about the version that is tried out beside the champion, where there is one. */
function challenger({ challenger: found }) {
  if (!found) return [];
  const { version, mode, share, ended, trouble } = found;
  const key = trouble ? "statusTrialTrouble" : ended ? "statusTrialEnded" : version === null ? "statusTrialNone" : mode === "canary" ? "statusCanary" : "statusShadow";
  return [[text("statusTrial"), text(key, { version, share: `${share * 100}%`, why: trouble ?? ended })]];
}

function showDrift() {
  const { model, drift, driftFailed, seen } = known;
  const days = drift ? Math.floor((seen - new Date(drift.checked)) / DAY) : 0;
  const stale = !drift ? "" : model && String(drift.version) !== model.version ? text("statusDriftOther") : days > 0 ? text("statusDriftOld", { days }) : "";
  $("drift-tile").classList.toggle("old", Boolean(driftFailed || stale));
  say("drift-stale", stale);
  $("drift").className = drift?.drift ? "verdict-text fake" : "";
  if (drift) {
    const { window, version, p_value, checked } = drift;
    $("drift").textContent = text(drift.drift ? "statusDriftYes" : "statusDriftNo");
    $("drift-about").textContent = text("statusDriftAbout", { window, version, p: p_value.toPrecision(2), date: date(checked, true) });
  } else {
    $("drift").textContent = text(driftFailed ? "statusDriftFailed" : "statusDriftNever");
    $("drift-about").textContent = driftFailed ? describe(driftFailed).title : "";
  }
}

function list(id, rows) {
  $(id).replaceChildren(...rows.flatMap(([name, value]) => [
    Object.assign(document.createElement("dt"), { textContent: name }),
    Object.assign(document.createElement("dd"), { textContent: value }),
  ]));
}

speak(show);
look();
