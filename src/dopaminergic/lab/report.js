// Sorts a table by a click on the head of a column, and hides rows without the words of a filter.
for (const table of document.querySelectorAll("table.results, table.settings")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const first = [...body.rows];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell && cell.dataset.value !== undefined ? Number(cell.dataset.value) : null;
  };
  const compare = (column, sign) => (one, other) => {
    const [a, b] = [key(one, column), key(other, column)];
    if (a !== null || b !== null) return a === null ? 1 : b === null ? -1 : sign * (a - b || 0);
    const words = (row) => (row.cells[column] || row).textContent;
    return sign * words(one).localeCompare(words(other), "en", { numeric: true });
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      const next = was === "ascending" ? "descending" : was === "descending" ? "" : "ascending";
      if (next) head.setAttribute("aria-sort", next);
      const groups = [];
      for (const row of first) {
        if (row.className === "reference" && groups.length) groups.at(-1).push(row);
        else groups.push([row]);
      }
      const order = compare(column, next === "descending" ? -1 : 1);
      if (next) groups.sort((one, other) => order(one[0], other[0]));
      body.append(...groups.flat());
    });
  });
  if (first.length < 8 || table.closest(".headline")) continue;
  const field = document.createElement("input");
  field.type = "search";
  field.placeholder = "Filter rows";
  field.setAttribute("aria-label", "Filter rows of this table");
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of first) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  (table.closest(".scroll") || table).before(field);
}
