// ---- Tables that sort, and the theme -----------------------------------------------------------------------------------

function sortable(table) {
  const body = table.tBodies[0];
  const key = (row, i) => {
    const { value } = row.cells[i].dataset;
    if (value === undefined || value === "") return value === "" ? null : row.cells[i].textContent.trim();
    const v = Number(value);
    return Number.isNaN(v) ? null : v;
  };
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  [...table.tHead.rows[0].cells].forEach((th, i) => {
    th.querySelector("button").addEventListener("click", () => {
      const up = th.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      th.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [key(row, i), row]);
      // What is not known stays at the end, whichever way round.
      rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : up ? compare(a, b) : compare(b, a)));
      body.append(...rows.map(([, row]) => row));
      $("live").textContent = `Sorted by ${th.textContent.trim()}, ${up ? "ascending" : "descending"}`;
    });
  });
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = $("theme");
  const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const say = () => (button.textContent = isDark() ? "Light" : "Dark");
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    say();
  });
  dark.addEventListener("change", say);
  say();
}

document.documentElement.classList.add("scripted");
for (const table of document.querySelectorAll("table.sorts")) sortable(table);
for (const details of document.querySelectorAll("details")) details.open = false;
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
$("all-columns")?.addEventListener("change", (e) => $("layers").classList.toggle("all", e.target.checked));
startTheme();
if (data.network) startNetwork();
