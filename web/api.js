// Requests to the service, and the key that it may require.

import { Problem } from "./i18n.js";
import { storage } from "./storage.js";

const KEY = "unmask-key";
const SENDABLE = /^[\x21-\x7e]+$/;  // fetch throws on a header with anything else
const PROXY = { 401: "login", 413: "too_large", 429: "too_many_requests" };  // what a proxy answers by itself, without our error body
const FORM = `
  <h2 data-i18n="keyTitle"></h2>
  <p data-i18n="keyText"></p>
  <p class="command">
    <label class="hidden" for="key" data-i18n="keyLabel"></label><input type="password" id="key" autocomplete="off" required>
    <button type="submit" class="quiet" data-i18n="keySend"></button>
  </p>
  <p class="detail" id="key-wrong" role="alert" data-i18n="keyWrong" hidden></p>`;
const session = storage("sessionStorage");
const $ = (id) => document.getElementById(id);
let asking = null;

$("key-form").innerHTML = FORM;  // the same on every page, translated with the rest of it

/** Send a request, with a key if the service requires one. Returns the response; throws Problem. */
export async function request(path, options = {}) {
  for (;;) {
    const key = session.getItem(KEY);
    const headers = { Accept: "application/json", ...options.headers, ...(key && { "X-API-Key": key }) };  // a proxy may use Authorization
    let response;
    try {
      response = await fetch(path, { ...options, headers });
    } catch {
      throw new Problem("network");
    }
    if (response.ok) return response;
    const { error } = await response.json().catch(() => ({}));
    // A proxy answers 502 or above if the service does not answer, or not in time.
    const code = error?.code ?? PROXY[response.status] ?? (response.status > 501 ? "gateway" : "other");
    const locked = response.status === 401 && response.headers.get("WWW-Authenticate") === "Bearer";  // the body may be the card's page
    if (!locked) throw new Problem(code, error?.message, error?.hint, Number(response.headers.get("Retry-After")));
    // Another request may have asked the user for the key meanwhile.
    if (session.getItem(KEY) === key) await (asking ??= ask(key !== null));
  }
}

/** Whether the service required a key, and the user gave one. */
export const keyed = () => session.getItem(KEY) !== null;

/** Send a request, and read the answer as JSON. Throws Problem. */
export async function call(path, options) {
  const response = await request(path, options);
  return response.json().catch(() => {
    throw new Problem("other");
  });
}

/** Ask the user for the key until there is one; `wrong` if the service rejected the last one. */
function ask(wrong) {
  session.removeItem(KEY);
  $("key-form").hidden = false;
  $("key-wrong").hidden = !wrong;
  $("key").focus();
  return new Promise((resolve) => {
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      const key = $("key").value.trim();
      $("key").value = "";
      if (!SENDABLE.test(key)) {
        $("key-wrong").hidden = false;
        $("key").focus();
        return;
      }
      session.setItem(KEY, key);
      $("key-form").hidden = true;
      asking = null;
      resolve();
    };
  });
}
