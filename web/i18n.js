// The page's language, and how numbers, dates and problems are put into words.

import { storage } from "./storage.js";
import en from "./words.en.js";
import zh from "./words.zh.js";

export const WORDS = { en, zh };
const KEY = "unmask-language";
const FURTHER = 4;  // extra digits at most: the service sends no more
const remembered = storage("localStorage");
let language = WORDS[remembered.getItem(KEY)] ? remembered.getItem(KEY) : navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

/** A problem that the page can put into words: `code` is as in the service's errors, `wait` the seconds before the next try. */
export class Problem extends Error {
  constructor(code, message = "", hint = "", wait = 0) {
    super(message);
    Object.assign(this, { code, hint, wait });
  }
}

/** Whether there is a text with this name. */
export const has = (name) => name in WORDS.en;

/** The text with this name in the page's language, with {placeholders} filled in. */
export function text(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

/** Translate every element that names a text. */
function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-i18n]")) put(element, text(element.dataset.i18n));
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === language));
  }
}

/** Set the text of the element with this id. */
export const say = (id, words) => put(document.getElementById(id), words);

/** Set an element's text only if it changes: otherwise a live region would be read out again, and a long list laid out again. */
export function put(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

/** Translate the page now and whenever another language is chosen, which the browser remembers. `show` updates the rest of the page. */
export function speak(show = () => {}) {
  for (const button of document.querySelectorAll("[data-language]")) {
    button.addEventListener("click", () => {
      language = button.dataset.language;
      remembered.setItem(KEY, language);
      translate();
      show();
    });
  }
  translate();
}

/** A share as a percentage that never says 0% or 100%: the model is never certain. */
function percent(share, further) {
  const edge = 0.1 / 10 ** further;
  if (share * 100 < edge) return `< ${edge.toFixed(1 + further)}%`;
  if (share * 100 > 100 - edge) return `> ${(100 - edge).toFixed(1 + further)}%`;
  const digits = share < 0.1 || share > 0.9 ? 1 : 0;
  return `${(share * 100).toFixed(digits + further)}%`;
}

/** A probability and its two thresholds as percentages, with more digits if it would otherwise look equal to one that it differs from. */
export function percents(probability, { real_below: low, fake_above: high }) {
  const shares = [probability, low, high];
  for (let further = 0; ; further += 1) {
    const [figure, ...bounds] = shares.map((share) => percent(share, further));
    const alike = bounds.some((bound, index) => bound === figure && shares[index + 1] !== probability);
    if (!alike || further === FURTHER) return [figure, ...bounds];
  }
}

/** An ISO 8601 time as a date, with the time of day if asked for. */
export function date(iso, withTime = false) {
  const options = { dateStyle: "medium", ...(withTime && { timeStyle: "short" }) };
  return new Intl.DateTimeFormat(document.documentElement.lang, options).format(new Date(iso));
}

/** What went wrong, and what to do: in the page's words if it has any for this code, else in the service's. */
export function describe(error) {
  const { code, message, hint } = error instanceof Problem ? error : new Problem("other");
  if (has(`error_${code}`)) return { title: text(`error_${code}`), hint: text(`hint_${code}`) };
  return { title: message || text("error_other"), hint: hint || text("hint_other") };
}

/** An answer in one sentence, for screen readers. */
export function announceable({ verdict, probability_fake, thresholds }) {
  return text("announced", { verdict: text(verdict), percent: percents(probability_fake, thresholds)[0] });
}
