// The model card, which the service makes into HTML without any markup of the card's own.

import { request } from "./api.js";

/** Fetch the card from this address and put it into an element. */
export async function fill(target, path) {
  const response = await request(path, { headers: { Accept: "text/html" } });
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  target.replaceChildren(...page.getElementById("card-text").childNodes);
}
