// The list of all images of this visit, and its CSV export.

import { describe, percents, put, text } from "./i18n.js";

const OF_THE_FILE = ["empty", "not_an_image", "too_large", "too_many_pixels", "truncated"];
const $ = (id) => document.getElementById(id);

/** Whether an item failed but may succeed if tried again. */
export const mayPass = ({ problem }) => Boolean(problem) && !OF_THE_FILE.includes(problem.code);

/** Update the list to the items; `select` is called with the item that the user picks. */
export function showRows(items, selected, select) {
  $("list").hidden = items.length < 2;
  const done = items.filter((item) => item.answer || item.problem).length;
  $("progress").max = items.length || 1;
  $("progress").value = done;
  $("progress").hidden = done === items.length;
  $("progress-text").textContent = text("progress", { done, all: items.length });
  $("csv").disabled = done === 0;
  $("again-all").hidden = !items.some(mayPass);
  for (const item of items) {
    item.row ??= row(item, select);
    fill(item, item === selected);
  }
  const rows = items.map((item) => item.row);
  // Rows that stay are not moved: a moved button loses focus.
  if (rows.length !== $("rows").children.length || rows.some((made, index) => made !== $("rows").children[index])) $("rows").replaceChildren(...rows);
}

function row(item, select) {
  const made = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "row";
  button.addEventListener("click", () => select(item));
  button.addEventListener("keydown", (event) => {
    const next = { ArrowDown: made.nextElementSibling, ArrowUp: made.previousElementSibling }[event.key];
    if (!next) return;
    event.preventDefault();  // would scroll
    next.firstChild.focus();
  });
  const thumbnail = document.createElement("img");
  Object.assign(thumbnail, { src: item.url, alt: "", width: 48, height: 48, loading: "lazy", decoding: "async" });
  thumbnail.onerror = () => thumbnail.classList.add("none");
  const [name, said, figure] = ["name", "said", "number"].map((kind) => {
    const part = document.createElement("span");
    part.className = kind;
    return part;
  });
  name.textContent = item.file.name;
  button.append(thumbnail, name, said, figure);
  made.append(button);
  return made;
}

function fill({ row: made, answer, problem }, chosen) {
  const button = made.firstChild;
  button.setAttribute("aria-current", String(chosen));
  button.tabIndex = chosen ? 0 : -1;  // one tab stop instead of hundreds before the answer; the arrow keys move between rows
  const said = button.querySelector(".said");
  said.className = `said ${answer?.verdict ?? (problem ? "bad" : "")}`;
  put(said, answer ? text(answer.verdict) : problem ? describe(problem).title : text("waitingShort"));
  put(button.querySelector(".number"), answer ? percents(answer.probability_fake, answer.thresholds)[0] : "");
}

/** Save the answers as a CSV file, one row per image. */
export function exportCsv(items) {
  const columns = ["file", "verdict", "probability_fake", "real_below", "fake_above", "faces", "warnings", "model_version", "id", "error"];
  const lines = items.map(({ file, answer, problem }) =>
    answer
      ? [file.name, answer.verdict, answer.probability_fake, answer.thresholds.real_below, answer.thresholds.fake_above, answer.faces.length,
          answer.warnings.join(" "), answer.model.version, answer.id, ""]
      : [file.name, "", "", "", "", "", "", "", "", problem?.code ?? ""]);
  const content = [columns, ...lines].map((line) => line.map(cell).join(",")).join("\r\n");
  const link = document.createElement("a");
  // Spreadsheets need the byte order mark to read names that are not ASCII.
  link.href = URL.createObjectURL(new Blob(["\ufeff", content, "\r\n"], { type: "text/csv" }));
  link.download = "unmask.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** A value as a cell. Text is quoted, whatever separator a spreadsheet uses; what it would run as a formula gets an apostrophe. */
function cell(value) {
  if (typeof value !== "string") return String(value);
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return `"${safe.replaceAll('"', '""')}"`;
}
