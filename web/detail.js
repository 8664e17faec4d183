// Everything that the page says about the selected image.

import { date, describe, has, percents, say, text } from "./i18n.js";
import { draw, side } from "./map.js";
import { mayPass } from "./rows.js";
import { upright } from "./upright.js";

const $ = (id) => document.getElementById(id);
let inForm = null;  // the item whose feedback the form holds

/** Show an item, or nothing. */
export function showDetail(item) {
  const { answer, problem } = item ?? {};
  $("error").hidden = !problem;
  $("result").hidden = !item || Boolean(problem);
  if (problem) {
    const { title, hint } = describe(problem);
    say("error-title", `${item.file.name}: ${title}`);
    say("error-hint", hint);
    $("again").hidden = !mayPass(item);
  }
  if (!item || problem) return;
  preview(item);
  $("result").classList.toggle("judging", !answer);
  $("waiting").hidden = Boolean(answer);
  say("waiting-text", item.held ? `${describe(item.held).title} ${text("goesOn")}` : text("waiting"));
  $("said").hidden = !answer;
  if (answer) showAnswer(answer);
  showFeedback(item);
  showMap(item);
  draw(item);
}

function preview(item) {
  const image = $("preview");
  $("name").textContent = item.file.name;
  if (image.dataset.url === item.url) return;
  image.dataset.url = item.url;
  image.hidden = false;
  $("unseen").hidden = true;
  image.onload = () => draw(item);
  image.onerror = () => {
    image.hidden = true;
    $("unseen").hidden = false;
    draw(item);
  };
  image.src = item.url;
  image.alt = item.file.name;
  upright(item.file).then(async (url) => {
    if (!url) return;
    if (image.dataset.url === item.url) {
      image.src = url;
      await image.decode().catch(() => {});
    }
    URL.revokeObjectURL(url);
  });
}

function showAnswer(answer) {
  const { real_below, fake_above } = answer.thresholds;
  const [figure, low, high] = percents(answer.probability_fake, answer.thresholds);
  $("verdict").textContent = text(answer.verdict);
  $("verdict").className = `verdict ${answer.verdict}`;
  $("percent").textContent = figure;
  $("bar").setAttribute("aria-label", text("barLabel", { percent: figure, low, high }));
  $("zone-real").style.width = $("tick-real").style.left = `${real_below * 100}%`;
  $("zone-uncertain").style.width = `${(fake_above - real_below) * 100}%`;
  $("tick-fake").style.left = `${fake_above * 100}%`;
  $("needle").style.left = `${answer.probability_fake * 100}%`;
  $("legend-real").textContent = text("below", { bound: low });
  $("legend-uncertain").textContent = text("between", { low, high });
  $("legend-fake").textContent = text("above", { bound: high });
  const withheld = answer.warnings.includes("no_face") && answer.verdict !== side(answer.probability_fake, answer.thresholds);
  $("meaning").textContent = text(withheld ? "withheld" : "meaning", { percent: figure });
  const several = answer.faces.length > 1 ? answer.faces : [];
  $("faces").replaceChildren(...several.map(({ probability_fake: share }, index) =>
    element("li", text("face", { number: index + 1, percent: percents(share, answer.thresholds)[0], verdict: text(side(share, answer.thresholds)) }))));
  $("warnings").replaceChildren(...answer.warnings.map((name) => element("li", has(`warning_${name}`) ? text(`warning_${name}`) : name)));
  showCredentials(answer.credentials);
  const { version, created, run_id, data_md5, git_commit } = answer.model;
  $("about").textContent = text(version === "starter" ? "aboutStarter" : "about", { version, date: date(created) });
  const rows = { version, made: date(created), run: run_id, data: data_md5, commit: git_commit, request: answer.id };
  rows.time = text("milliseconds", { value: Math.round(answer.timing_ms) });
  const known = Object.entries(rows).filter(([, value]) => value);
  $("details").replaceChildren(...known.flatMap(([name, value]) => [element("dt", text(name)), element("dd", value)]));
}

/** Name the map by its method: rollout shows where the model looked, the others where evidence of a fake is, if anywhere. */
function showMap({ answer, map, mapState }) {
  const empty = Boolean(map) && map.heat.flat().every((value) => value === 0);
  const kind = map?.method === "attention_rollout" ? "looked" : "spoke";
  $("map-title").textContent = text(map ? `map_${kind}` : "map");
  const note = map ? (empty ? "mapEmpty" : `mapNote_${kind}`) : mapState;
  const other = map && map.model.version !== answer.model.version && text("mapOfOther", { version: map.model.version });
  $("map-note").textContent = [note && text(note), map && answer.faces.length > 1 && text("mapOfOne"), other].filter(Boolean).join(" ");
  $("scale").hidden = empty;
  $("opacity").disabled = !map || empty;
}

function showCredentials(found) {
  $("credentials").hidden = !found;
  if (!found) return;
  const parts = [text("credentialsBy", { signer: found.signer ?? "?", program: found.claim_generator ?? "?" })];
  parts.push(text(found.valid ? "credentialsValid" : "credentialsInvalid"));
  if (found.ai_generated.length) parts.push(text("credentialsAi"));
  $("credentials-text").textContent = parts.join(" ");
}

/** The form is empty for a new image, as it was left for one selected again, and hidden once it was sent. */
function showFeedback(item) {
  if (inForm !== item) {
    const form = $("feedback"), { elements } = form;
    if (inForm) inForm.draft = { values: new FormData(form), open: $("wrong").open };
    inForm = item;
    form.reset();
    const { values, open } = item.draft ?? {};
    $("wrong").open = Boolean(open);
    if (values) {
      elements.label.value = values.get("label");
      elements.comment.value = values.get("comment");
      elements.keep.checked = values.has("keep");
    }
  }
  $("feedback").hidden = Boolean(item.told);
  $("send").disabled = Boolean(item.telling);
  const failed = item.tellProblem && describe(item.tellProblem);
  say("feedback-said", item.told ? text("wrong_thanks") : failed ? `${text("wrong_failed")} ${failed.title} ${failed.hint}` : "");
}

function element(tag, content) {
  const made = document.createElement(tag);
  made.textContent = content;
  return made;
}
