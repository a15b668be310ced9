// The page is whole without this. It sorts, filters, copies, shows values and switches the theme.
"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
all(".needs-script").forEach((e) => (e.hidden = false));

// theme: the system's, until a choice is made here
const root = document.documentElement;
const kept = (() => { try { return localStorage; } catch { return null; } })();
if (kept?.getItem("theme")) root.dataset.theme = kept.getItem("theme");
document.getElementById("theme").addEventListener("click", () => {
  const dark = getComputedStyle(root).colorScheme === "dark";
  root.dataset.theme = dark ? "light" : "dark";
  kept?.setItem("theme", root.dataset.theme);
});

// copy: where the clipboard is closed the text is selected instead
all(".copy").forEach((button) => button.addEventListener("click", async () => {
  const text = button.parentElement.querySelector("pre");
  try {
    await navigator.clipboard.writeText(text.textContent);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(text);
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}));

// charts: a legend that hides curves, values of all curves at the calls nearest to the pointer
for (const figure of all(".chart")) {
  const svg = figure.querySelector(":scope > svg");
  const curves = all(".curve", figure).reverse(); // drawn from the last to the first
  all(".legend button", figure).forEach((button, i) => button.addEventListener("click", () => {
    const off = curves[i].classList.toggle("off");
    button.setAttribute("aria-pressed", String(!off));
  }));
  const where = new Map();
  all("circle", svg).forEach((c) => where.set(Number(c.dataset.n), Number(c.getAttribute("cx"))));
  const calls = [...where.keys()].sort((a, b) => a - b);
  const box = figure.appendChild(Object.assign(document.createElement("div"), { className: "values", hidden: true }));
  box.setAttribute("role", "status");
  const cursor = svg.appendChild(document.createElementNS(svg.namespaceURI, "line"));
  cursor.setAttribute("class", "cursor");
  let at = -1;
  const show = (i) => {
    at = Math.min(Math.max(i, 0), calls.length - 1);
    const x = where.get(calls[at]);
    for (const [k, v] of [["x1", x], ["x2", x], ["y1", 12], ["y2", 354]]) cursor.setAttribute(k, v);
    const held = curves.filter((c) => !c.classList.contains("off")).flatMap((c) =>
      all(`circle[data-n="${calls[at]}"]`, c).map((p) => [Number(p.getAttribute("cy")), c.dataset.name, p.dataset.v]));
    held.sort((a, b) => b[0] - a[0]); // the least value lies lowest
    box.replaceChildren(`${calls[at]} calls`, Object.assign(document.createElement("ol"), {}));
    for (const [, name, value] of held) {
      box.lastChild.appendChild(document.createElement("li")).textContent = `${value}  ${name}`;
    }
    box.hidden = false;
    box.style.right = x > 320 ? "auto" : ".6rem";
    box.style.left = x > 320 ? "3.6rem" : "auto";
  };
  const hide = () => { box.hidden = true; at = -1; ["x1", "x2", "y1", "y2"].forEach((k) => cursor.setAttribute(k, 0)); };
  svg.addEventListener("pointermove", (event) => {
    const x = (event.clientX - svg.getBoundingClientRect().left) * 640 / svg.clientWidth;
    const far = (n) => Math.abs(where.get(n) - x);
    show(calls.indexOf(calls.reduce((a, b) => (far(b) < far(a) ? b : a))));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("focus", () => { if (svg.matches(":focus-visible")) show(0); });
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) { event.preventDefault(); show(at + step); }
    if (event.key === "Escape") hide();
  });
}

// the table: filters, sorting, CSV of what is shown
const table = document.getElementById("every");
if (table) {
  const form = document.getElementById("filters").elements;
  const rows = all("tbody tr", table);
  const heads = all("thead th", table);
  const filter = () => {
    const words = form.find.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const keep = ["problem", "measure", "side"].every((k) => !form[k].value || row.dataset[k] === form[k].value)
        && (!form.best.checked || "best" in row.dataset) && words.every((w) => text.includes(w));
      row.hidden = !keep;
      count += keep;
    }
    for (const k of ["problem", "measure"]) table.classList.toggle(`one-${k}`, form[k].value !== "");
    form.count.value = `${count} of ${rows.length} rows`;
  };
  document.getElementById("filters").addEventListener("input", filter);
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((h) => h.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const order = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (isNaN(x) || isNaN(y)) return x === y ? 0 : x === "inf" ? 1 : y === "inf" ? -1 : (x < y ? -1 : 1) * (down ? -1 : 1);
      return (x - y) * (down ? -1 : 1);
    };
    table.tBodies[0].append(...rows.sort(order));
  }));
  document.getElementById("csv").addEventListener("click", () => {
    const cell = (c) => `"${(c.dataset.v ?? c.textContent).replaceAll('"', '""')}"`;
    const lines = [table.tHead.rows[0], ...rows.filter((r) => !r.hidden)].map((r) => [...r.cells].map(cell).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([lines.join("\r\n")], { type: "text/csv" }));
    link.download = "rows.csv";
    link.click();
  });
  filter();
}
