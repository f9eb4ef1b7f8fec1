// Sort the table of classes by a click on a heading; show it where a phone leaves out its picture; print it.
for (const table of document.querySelectorAll("table.sortable")) {
  const head = table.rows[0], value = (row, i) => row.cells[i].textContent.trim();
  [...head.cells].forEach((cell, i) => {
    const button = document.createElement("button");
    button.append(...cell.childNodes);
    cell.append(button);
    button.onclick = () => {
      const down = cell.getAttribute("aria-sort") === "ascending";
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.rows].slice(1);
      rows.sort((a, b) => {
        const [x, y] = [a, b].map(row => parseFloat(value(row, i)));
        if (isNaN(x) || isNaN(y)) return value(a, i).localeCompare(value(b, i), "en", { numeric: true }) * (down ? -1 : 1);
        return (x - y) * (down ? -1 : 1);
      });
      head.after(...rows);
    };
  });
}
const columns = document.querySelector(".columns");  // a picture that a phone leaves out: its table is shown instead
if (columns && getComputedStyle(columns).display === "none") document.querySelector("details").open = true;
addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
