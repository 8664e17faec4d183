// Everything that is said of the one picture that is looked at.

import { date, describe, has, percent, text } from "./i18n.js";
import { draw, side } from "./map.js";

const $ = (id) => document.getElementById(id);

/** Show an item, or nothing. */
export function showDetail(item) {
  const { answer, problem } = item ?? {};
  $("error").hidden = !problem;
  $("result").hidden = !item || Boolean(problem);
  if (problem) {
    const { title, hint } = describe(problem);
    $("error-title").textContent = `${item.file.name}: ${title}`;
    $("error-hint").textContent = hint;
  }
  if (!item || problem) return;
  preview(item);
  $("result").classList.toggle("judging", !answer);
  $("waiting").hidden = Boolean(answer);
  $("said").hidden = !answer;
  if (answer) showAnswer(answer);
  showFeedback(item);
  $("map-note").textContent = item.mapState ? text(item.mapState) : "";
  $("opacity").disabled = !item.map;
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
  const several = answer.faces.length > 1 ? answer.faces : [];
  $("faces").replaceChildren(...several.map((face, index) =>
    element("li", text("face", { number: index + 1, percent: percent(face.probability_fake) }), side(face.probability_fake, answer.thresholds))));
  $("warnings").replaceChildren(...answer.warnings.map((name) => element("li", has(`warning_${name}`) ? text(`warning_${name}`) : name)));
  showCredentials(answer.credentials);
  const { version, created, run_id, data_md5, git_commit } = answer.model;
  $("about").textContent = text(version === "starter" ? "aboutStarter" : "about", { version, date: date(created) });
  const rows = { version, made: date(created), run: run_id, data: data_md5, commit: git_commit, request: answer.id };
  rows.time = text("milliseconds", { value: Math.round(answer.timing_ms) });
  const known = Object.entries(rows).filter(([, value]) => value);
  $("details").replaceChildren(...known.flatMap(([name, value]) => [element("dt", text(name)), element("dd", value)]));
}

function showCredentials(found) {
  $("credentials").hidden = !found;
  if (!found) return;
  const parts = [text("credentialsBy", { signer: found.signer ?? "?", program: found.claim_generator ?? "?" })];
  parts.push(text(found.valid ? "credentialsValid" : "credentialsInvalid"));
  if (found.ai_generated.length) parts.push(text("credentialsAi"));
  $("credentials-text").textContent = parts.join(" ");
}

/** The form is empty for each new picture, and gone when it was sent. */
function showFeedback(item) {
  if ($("feedback").dataset.url !== item.url) {
    $("feedback").dataset.url = item.url;
    $("feedback").reset();
    $("wrong").open = false;
  }
  $("feedback").hidden = item.feedback === "thanks";
  $("feedback-said").textContent = item.feedback ? text(`wrong_${item.feedback}`) : "";
}

function element(tag, content, kind = "") {
  const made = document.createElement(tag);
  made.textContent = content;
  if (kind) made.className = kind;
  return made;
}
