// The model card as a page of its own. The page contains the card, unless the service requires a key first.

import { fill } from "./card.js";
import { describe, speak } from "./i18n.js";

const target = document.getElementById("card-text");

speak();
if (!target.childNodes.length) {
  fill(target, location.pathname).catch((problem) => {
    target.textContent = describe(problem).title;
  });
}
