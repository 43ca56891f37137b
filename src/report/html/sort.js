// Tables sort by the column whose heading is clicked: first the lowest, then the highest.
for (const table of document.querySelectorAll("table.data")) {
  const body = table.tBodies[0], headings = [...table.tHead.rows].at(-1).cells;
  // What is no number is not equal to itself, and comes last.
  const isNone = x => x !== x;
  const units = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, million: 1e6, billion: 1e9, "%": 1 };
  const factor = text => {
    const [figure, unit = "B"] = text.replace(/^< |,/g, "").split(" ");
    return Number(figure) * units[unit];
  };
  const number = text => text === "exact" ? Infinity : text === "scalar" ? 1 : text.split(" × ").map(factor).reduce((a, b) => a * b, 1);
  const value = (row, column) => {
    const cell = row.cells[column], text = cell.textContent.trim();
    return cell.className === "n" ? number(text) : text;
  };
  const compare = (a, b) => typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : (isNone(a) - isNone(b)) || a - b || 0;
  [...headings].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const falls = heading.ariaSort === "ascending";
      for (const other of headings) other.ariaSort = null;
      heading.ariaSort = falls ? "descending" : "ascending";
      const rows = [...body.rows].map(row => [value(row, column), row]);
      rows.sort(([a], [b]) => typeof a === "number" && (isNone(a) || isNone(b)) ? isNone(a) - isNone(b) : falls ? compare(b, a) : compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
