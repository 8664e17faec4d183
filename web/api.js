// Requests to the service, and the key that it may ask for.

import { text } from "./i18n.js";

const KEY = "unmask-key";
const $ = (id) => document.getElementById(id);
let asking = null;

/** A problem that the page can put into words: `code` is the service's. */
export class Problem extends Error {
  constructor(code, message = "", hint = "", wait = 0) {
    super(message);
    Object.assign(this, { code, hint, wait });
  }
}

/** Ask the service; with a key if it wants one. Returns the response; throws Problem. */
export async function request(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { Accept: "application/json", ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Problem("network");
    }
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    if (response.status !== 401) throw new Problem(error?.code ?? "other", error?.message, error?.hint, Number(response.headers.get("Retry-After")));
    // Another request may have asked for the key meanwhile.
    if (sessionStorage.getItem(KEY) === key) await (asking ??= ask(key !== null));
  }
}

/** Ask, and read the answer as JSON. */
export const call = async (path, options) => (await request(path, options)).json();

/** Ask the user for the key, until there is one; `wrong` if the service did not take the last one. */
function ask(wrong) {
  sessionStorage.removeItem(KEY);
  $("key-form").hidden = false;
  $("key-wrong").textContent = wrong ? text("keyWrong") : "";
  $("key").focus();
  return new Promise((resolve) => {
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, $("key").value);
      $("key").value = "";
      $("key-form").hidden = true;
      asking = null;
      resolve();
    };
  });
}
