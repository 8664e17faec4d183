// The model card: Markdown as our cards use it (headings, lists, tables, bold), built without any HTML from the service.

/** Put a card into an element. */
export function render(markdown, target) {
  target.replaceChildren();
  let list = null, table = null;
  for (const line of markdown.split("\n")) {
    const cells = line.startsWith("|") ? line.split("|").slice(1, -1).map((cell) => cell.trim()) : null;
    if (!line.startsWith("- ")) list = null;
    if (!cells) table = null;
    if (cells?.every((cell) => /^:?-+:?$/.test(cell)) || !line.trim()) continue;
    const heading = line.match(/^(#{1,3}) (.*)/);
    if (cells) {
      const kind = table ? "td" : "th";
      table ??= target.appendChild(document.createElement("table"));
      const row = table.appendChild(document.createElement("tr"));
      for (const cell of cells) row.append(inline(kind, cell));
    } else if (heading) target.append(inline(`h${heading[1].length + 2}`, heading[2]));
    else if (line.startsWith("- ")) (list ??= target.appendChild(document.createElement("ul"))).append(inline("li", line.slice(2)));
    else target.append(inline("p", line));
  }
}

function inline(tag, content) {
  const made = document.createElement(tag);
  content.split("**").forEach((part, index) => {
    if (index % 2) made.appendChild(document.createElement("strong")).textContent = part;
    else made.append(part);
  });
  return made;
}
