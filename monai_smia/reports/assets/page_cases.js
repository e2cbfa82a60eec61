"use strict";
// The table by case: choice of metric and attack, and sorting by any column.
const shownNumber = (value, digits = 3) => {
  if (value === null || Number.isNaN(value)) return "undefined";
  const size = Math.abs(value);
  let text;
  if (size === Infinity) text = "∞";
  else if (size > 0 && size < 0.5 * 10 ** -digits) text = size.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2").replace("-", "−");
  else text = size.toFixed(size < 10 ? digits : size < 1000 ? 1 : 0);
  return value < 0 ? "−" + text : text;
};

const shownSize = (value) => {
  if (!Number.isFinite(value)) return shownNumber(value);
  const rounded = Number(value.toPrecision(3));
  const text = rounded !== 0 && Math.abs(rounded) < 1e-4 ? rounded.toExponential() : String(rounded);
  return text.replace(/e-(\d)$/, "e-0$1").replaceAll("-", "−");
};

(() => {
  const table = document.getElementById("case-table");
  if (!table) return;
  const data = JSON.parse(document.getElementById("case-data").textContent);
  const views = JSON.parse(document.getElementById("view-data").textContent).views;
  const viewed = new Map(views.map((view, i) => [view.case, i]));
  const runsOf = views.map((view) => new Set(view.runs.map((own) => own.run)));
  const metric = document.getElementById("case-metric");
  const run = document.getElementById("case-run");
  const status = document.getElementById("case-status");
  const heads = [...table.tHead.rows[0].cells];
  const number = (value) => (value === null || value === undefined ? NaN : Number(value));
  const UNDER_ATTACK = 2;
  const SIZE = 4;
  let sorting = null;
  let rows = [];

  const isWorse = (a, b, lower) => !Number.isNaN(a) && (Number.isNaN(b) || (lower ? a > b : a < b));

  const gather = () => {
    const measure = data.measures[Number(metric.value)];
    const chosen = run.value === "worst" ? data.runs.map((_, i) => i) : [Number(run.value)];
    rows = data.cases.map((name, i) => {
      let value = NaN;
      let from = run.value === "worst" ? null : chosen[0];
      for (const j of chosen) {
        const own = measure.values[j] ? number(measure.values[j][i]) : NaN;
        if (isWorse(own, value, measure.lower)) [value, from] = [own, j];
      }
      const clean = number(measure.clean[i]);
      const change = from === null ? NaN : number(data.changes[from][i]);
      return [name, clean, value, value - clean, change, from === null ? "undefined" : data.runs[from], from];
    });
    return measure;
  };

  const compare = (column, direction) => (a, b) => {
    const [x, y] = [a[column], b[column]];
    if (typeof x === "string") return direction * x.localeCompare(y, "en", { numeric: true });
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
    return direction * (x < y ? -1 : x > y ? 1 : 0);
  };

  const cell = (tag, value, said = shownNumber) => {
    const element = document.createElement(tag);
    if (typeof value === "number") {
      element.textContent = said(value);
      if (Number.isNaN(value)) element.className = "undefined";
    } else element.textContent = value;
    return element;
  };

  const fill = () => {
    rows.sort(compare(sorting.column, sorting.direction));
    const body = table.tBodies[0];
    body.replaceChildren(
      ...rows.map((row) => {
        const line = document.createElement("tr");
        const name = cell("th", row[0]);
        name.scope = "row";
        const there = viewed.get(row[0]);
        if (there !== undefined && (row[6] === null || runsOf[there].has(data.runs[row[6]]))) {
          const button = document.createElement("button");
          button.type = "button";
          button.className = "show";
          button.textContent = "show";
          button.setAttribute("aria-label", `show the images of ${row[0]}`);
          button.addEventListener("click", () => {
            const detail = { view: viewed.get(row[0]), run: row[6] === null ? null : data.runs[row[6]] };
            document.dispatchEvent(new CustomEvent("show-case", { detail }));
          });
          name.append(button);
        }
        line.append(name, ...row.slice(1, 6).map((value, i) => cell("td", value, i + 1 === SIZE ? shownSize : shownNumber)));
        return line;
      }),
    );
    heads.forEach((head, i) => {
      if (i === sorting.column) head.setAttribute("aria-sort", sorting.direction > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
  };

  const worstFirst = () => {
    const measure = gather();
    sorting = { column: UNDER_ATTACK, direction: measure.lower ? -1 : 1 };
    const attack = run.selectedOptions[0].textContent;
    table.caption.textContent = `${measure.label} of each case under ${attack}, the worst cases first`;
    table.parentElement.setAttribute("aria-label", table.caption.textContent);
    fill();
  };

  heads.forEach((head, i) => {
    head.querySelector("button").addEventListener("click", () => {
      sorting = { column: i, direction: sorting.column === i ? -sorting.direction : 1 };
      table.caption.textContent = table.caption.textContent.replace(/, the worst cases first$/, "");
      fill();
      const way = sorting.direction > 0 ? "ascending" : "descending";
      status.textContent = `Sorted by ${head.textContent}, ${way}.`;
    });
  });
  metric.addEventListener("change", worstFirst);
  run.addEventListener("change", worstFirst);
  document.getElementById("case-controls").hidden = false;
  worstFirst();
})();
