// What a page can do beyond being read: sort and filter its tables, hide columns, choose the colours.
// Nothing is fetched and nothing is kept but the choice of colours. Without this the page is whole.
"use strict";
(() => {
  const THEMES = ["system", "light", "dark"];
  const MANY_ROWS = 8; // beyond which a table gets a filter
  const MANY_COLUMNS = 8; // beyond which groups of columns can be hidden
  const root = document.documentElement;

  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };

  // A page opened as a file may have no storage; the choice then lasts as long as the page.
  const stored = () => {
    try { return localStorage.getItem("robustssm-theme"); } catch { return null; }
  };
  const store = (theme) => {
    try { localStorage.setItem("robustssm-theme", theme); } catch { /* not kept, as said above */ }
  };
  const wear = (theme) => {
    if (theme === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
  };
  let theme = THEMES.includes(stored()) ? stored() : "system";
  wear(theme); // before anything is drawn

  const themeButton = () => {
    const button = make("button", { type: "button", class: "theme" });
    const show = () => { button.textContent = `Colours: ${theme}`; };
    button.addEventListener("click", () => {
      theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
      wear(theme);
      store(theme);
      show();
    });
    show();
    return button;
  };

  // The value of a cell is its first text: what is below it in small print does not count.
  const shown = (cell) => {
    const first = cell.firstChild;
    return first ? first.textContent.trim() : "";
  };

  const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const plain = (text) => text
    .replace(/\u2212/g, "-")
    .replace(/10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)/, (_, power) => "1e" + [...power]
      .map((sign) => (sign === "⁻" ? "-" : SUPERSCRIPTS.indexOf(sign))).join(""))
    .replace(/\s*×\s*1e/, "e")
    .replace(/(\d),(?=\d{3}(\D|$))/g, "$1")
    .replace(/∞/g, "Infinity");

  // The number that a text begins with, after signs such as "<" and "p ="; NaN if it has none.
  const number = (text) => {
    const found = plain(text).match(/^[<>≤≥≈p=\s]*([-+]?(?:Infinity|\d*\.?\d+(?:e[-+]?\d+)?))/i);
    if (!found) return NaN;
    const value = Number(found[1]);
    return /^\s*(p\s*)?</.test(text) ? value * (1 - 1e-9) : value;
  };

  const rowsOf = (body) => [...body.rows].filter((row) => !row.classList.contains("group"));

  class Sheet {
    constructor(table) {
      this.table = table;
      this.bodies = [...table.tBodies];
      this.original = this.bodies.map(rowsOf);
      const last = table.tHead.rows[table.tHead.rows.length - 1];
      this.heads = [...last.cells].filter((head) => !head.classList.contains("corner"));
      const corner = table.tHead.rows[0].cells[0];
      if (this.heads[0] !== corner) this.heads.unshift(corner);
      this.sorted = { column: -1, direction: "none" };
      if (this.original.some((rows) => rows.length > 1)) this.offerSorting();
      const bar = make("div", { class: "controls" });
      if (this.original.flat().length > MANY_ROWS) this.offerFilter(bar);
      this.offerColumns(bar);
      if (bar.children.length) table.parentElement.before(bar);
    }

    offerSorting() {
      this.heads.forEach((head, column) => {
        const button = make("button", { type: "button", class: "sort" });
        button.append(...head.childNodes);
        head.append(button);
        button.addEventListener("click", () => this.turn(column));
      });
    }

    // Ascending, then descending, then as the report has it.
    turn(column) {
      const same = this.sorted.column === column;
      const before = same ? this.sorted.direction : "none";
      const direction = { none: "ascending", ascending: "descending", descending: "none" }[before];
      this.sorted = { column, direction };
      this.heads.forEach((head, at) => {
        if (at === column && direction !== "none") head.setAttribute("aria-sort", direction);
        else head.removeAttribute("aria-sort");
      });
      const words = column === 0 || this.heads[column].classList.contains("words");
      this.bodies.forEach((body, at) => {
        const rows = this.original[at];
        body.append(...(direction === "none" ? rows : this.order(rows, column, direction, words)));
      });
    }

    order(rows, column, direction, words) {
      const sign = direction === "ascending" ? 1 : -1;
      const keyed = rows.map((row) => {
        const text = shown(row.cells[column]);
        const missing = row.cells[column].classList.contains("missing") || text === "";
        return { row, text, value: missing ? NaN : number(text), missing };
      });
      const gone = (each) => (words ? each.missing : Number.isNaN(each.value));
      const compare = (a, b) => {
        if (gone(a) || gone(b)) return gone(a) - gone(b); // what is missing stands last, both ways
        if (words) return sign * a.text.localeCompare(b.text, "en", { numeric: true });
        return a.value === b.value ? 0 : sign * (a.value < b.value ? -1 : 1);
      };
      return keyed.sort(compare).map((each) => each.row);
    }

    offerFilter(bar) {
      const total = this.original.flat().length;
      const label = make("label", {}, "Filter rows ");
      const input = make("input", { type: "search", placeholder: "all of these words" });
      this.status = make("span", { class: "status", role: "status" });
      label.append(input);
      bar.append(label, this.status);
      const columns = this.heads.map((head) => head.classList.contains("words"));
      this.texts = new Map();
      this.bodies.forEach((body, at) => {
        const title = body.rows[0]?.classList.contains("group") ? body.rows[0].textContent : "";
        for (const row of this.original[at]) {
          const own = [...row.cells].filter((_, column) => column === 0 || columns[column]);
          this.texts.set(row, [title, ...own.map((cell) => cell.textContent)].join(" ").toLowerCase());
        }
      });
      input.addEventListener("input", () => {
        const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
        let count = 0;
        for (const [row, text] of this.texts) {
          row.hidden = !wanted.every((word) => text.includes(word));
          count += !row.hidden;
        }
        for (const body of this.bodies) body.hidden = rowsOf(body).every((row) => row.hidden);
        this.status.textContent = wanted.length
          ? `${count} of ${total} rows with: ${wanted.join(" ")}` : "";
      });
    }

    offerColumns(bar) {
      const top = [...this.table.tHead.rows[0].cells].slice(1);
      const width = top.reduce((sum, head) => sum + head.colSpan, 0);
      if (this.table.tHead.rows.length < 2 || top.length < 2 || width <= MANY_COLUMNS) return;
      const group = make("span", { class: "columns", role: "group", "aria-label": "Columns" });
      let from = 1;
      for (const head of top) {
        const range = [from, from + head.colSpan];
        const label = make("label");
        const box = make("input", { type: "checkbox" });
        box.checked = true;
        label.append(box, ` ${head.textContent}`);
        group.append(label);
        box.addEventListener("change", () => this.show(head, range, box.checked));
        from = range[1];
      }
      bar.append(group);
    }

    show(top, [from, to], visible) {
      for (const line of this.table.rows) {
        if (line.classList.contains("group")) continue;
        const inHead = line.parentElement === this.table.tHead;
        let at = inHead && line.rowIndex > 0 ? 1 : 0; // the corner reaches down into further lines
        for (const cell of line.cells) {
          if (at >= from && at < to) cell.hidden = !visible;
          at += cell.colSpan;
        }
      }
    }
  }

  const done = new Set();
  const equip = (table) => {
    if (done.has(table) || !table.tHead || !table.tBodies.length) return;
    done.add(table);
    new Sheet(table);
  };

  // Detail is equipped when it is first looked at: a page of many runs has thousands of tables.
  const equipVisible = (part) => {
    for (const table of part.querySelectorAll("table")) {
      if (!table.parentElement.closest("details:not([open])")) equip(table);
    }
  };

  const reveal = () => {
    const name = decodeURIComponent(location.hash.slice(1));
    const target = name && document.getElementById(name);
    if (!target) return;
    for (let at = target.closest("details"); at; at = at.parentElement.closest("details")) at.open = true;
    target.scrollIntoView();
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.getElementById("page-controls").append(themeButton());
    equipVisible(document);
    document.addEventListener("toggle", (event) => {
      if (event.target.open) equipVisible(event.target);
    }, true);
    addEventListener("hashchange", reveal);
    reveal();
  });
})();
