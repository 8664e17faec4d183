// The model card, which the service renders as HTML without any raw HTML from the card.

import { request } from "./api.js";

/** Fetch the card from `path` and put it into an element. */
export async function fill(target, path) {
  const response = await request(path, { headers: { Accept: "text/html" } });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  target.replaceChildren(...page.getElementById("card-text").childNodes);
}
