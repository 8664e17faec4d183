// The page's language, and how figures, dates and problems are put into words.

import { WORDS } from "./words.js";

const KEY = "unmask-language";
let language = WORDS[localStorage.getItem(KEY)] ? localStorage.getItem(KEY) : navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

/** Whether there is a text of this name. */
export const has = (name) => name in WORDS.en;

/** The text of this name in the page's language, with {placeholders} filled in. */
export function text(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

/** Put the page's language into every element that names a text. */
export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-i18n]")) element.textContent = text(element.dataset.i18n);
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === language));
  }
}

/** Change the language, and remember it in this browser. */
export function speak(chosen) {
  language = chosen;
  localStorage.setItem(KEY, chosen);
  translate();
}

/** A share as a percentage that never says 0% or 100%: the model is never certain. */
export function percent(share) {
  if (share < 0.001) return "< 0.1%";
  if (share > 0.999) return "> 99.9%";
  const digits = share < 0.1 || share > 0.9 ? 1 : 0;
  return `${(share * 100).toFixed(digits)}%`;
}

/** An ISO 8601 time as a date, and as a time of day too if asked for. */
export function date(iso, withTime = false) {
  const options = { dateStyle: "medium", ...(withTime && { timeStyle: "short" }) };
  return new Intl.DateTimeFormat(document.documentElement.lang, options).format(new Date(iso));
}

/** What a problem is called, and what to do: in the page's words where it has them, else in the service's. */
export function describe({ code, message, hint }) {
  if (has(`error_${code}`)) return { title: text(`error_${code}`), hint: text(`hint_${code}`) };
  return { title: message || text("error_other"), hint: hint || text("hint_other") };
}

/** An answer in a sentence, for who does not see the page. */
export function announceable({ verdict, probability_fake }) {
  return `${text(verdict)}, ${percent(probability_fake)} ${text("probability")}`;
}
