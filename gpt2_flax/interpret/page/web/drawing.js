// Vectors as strips and matrices as maps, one pixel a number, stretched by CSS.

let palette = null;

function colours() {
  if (palette) return palette;
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  };
  palette = {
    zero: rgb("--zero"), plus: rgb("--plus"), minus: rgb("--minus"), masked: rgb("--masked"),
  };
  return palette;
}

// A share in [-1, 1] -> a colour: orange below zero, blue above.
function shade(share) {
  const { zero, plus, minus } = colours();
  const towards = share < 0 ? minus : plus;
  const amount = Math.min(1, Math.abs(share)) ** 0.8;
  return zero.map((from, i) => from + (towards[i] - from) * amount);
}

// Fills a canvas with `rows` x `columns` values; NaN is drawn as masked.
function paint(canvas, rows, columns, value, scale) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let row = 0, at = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++, at += 4) {
      const number = value(row, column);
      const colour = Number.isNaN(number) ? colours().masked : shade(number / scale);
      image.data.set(colour, at);
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

const largest = (values) => {
  let most = 1e-9;
  for (const value of values) if (Math.abs(value) > most) most = Math.abs(value);
  return most;
};

// A strip with a label, the first numbers beside it, and all of them on request.
function vector(holder, label) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  const some = make("button", { type: "button", class: "some", "aria-expanded": false });
  const all = make("div", { class: "all", hidden: "" });
  holder.classList.add("vector");
  holder.append(make("span", { class: "label" }, label), canvas, some, all);
  let values = [];
  const list = () => {
    some.setAttribute("aria-expanded", !all.hidden);
    const shown = all.hidden ? [] : Array.from(values);
    all.replaceChildren(...shown.map((v) => make("span", {}, number(v))));
  };
  some.addEventListener("click", () => {
    all.hidden = !all.hidden;
    list();
  });
  hover(canvas, () => [1, values.length], (_, place) => `feature ${place}: ${number(values[place])}`);
  return (newValues, scale = largest(newValues)) => {
    values = newValues;
    paint(canvas, 1, values.length, (_, column) => values[column], scale);
    const first = Array.from(values.slice(0, 3), (v) => number(v, 2)).join(", ");
    some.replaceChildren(`${first}, … `, make("u", {}, `all ${values.length}`));
    if (!all.hidden) list();
  };
}

// What is under the pointer, in words: says(row, column) of a map with size() cells.
function hover(element, size, says) {
  const tip = byId("tip");
  element.addEventListener("pointermove", (event) => {
    const box = element.getBoundingClientRect(), [rows, columns] = size();
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    tip.hidden = !(row >= 0 && row < rows && column >= 0 && column < columns);
    if (tip.hidden) return;
    tip.textContent = says(row, column);
    tip.style.top = `${event.clientY + 16}px`;
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 4))}px`;
  });
  element.addEventListener("pointerleave", () => { tip.hidden = true; });
}

// Names along a map's rows and columns: as many as have room, and the chosen one.
function axisNames(holder) {
  const sides = ["row-names", "column-names"].map((name) => make("div", { class: name, "aria-hidden": "true" }));
  holder.prepend(...sides);
  let names = [[], []], chosen = [null, null], lengths = [0, 0], shown = "";
  const label = () => {
    const steps = names.map((all, side) => Math.max(1, Math.ceil((11 * all.length) / (lengths[side] || 1))));
    const wanted = JSON.stringify([names, chosen.map((place, side) => (steps[side] > 1 ? place : null)), steps]);
    if (wanted === shown) return;
    shown = wanted;
    sides.forEach((element, side) => {
      const count = names[side].length;
      element.replaceChildren(...names[side].flatMap((name, i) => {
        if (i % steps[side] && i !== chosen[side]) return [];
        if (i !== chosen[side] && chosen[side] !== null && Math.abs(i - chosen[side]) < steps[side] && steps[side] > 1) return [];
        const text = make("span", {}, name);
        text.style[side ? "left" : "top"] = `${(100 * (i + 0.5)) / count}%`;
        return [text];
      }));
    });
  };
  new ResizeObserver(([{ contentRect: { width, height } }]) => {
    lengths = [height, width];
    label();
  }).observe(holder);
  return (newNames, newChosen) => {
    [names, chosen] = [newNames, newChosen];
    label();
  };
}

// A map of numbers in which a cell can be chosen by mouse or arrow keys.
//   choose(row, column): called with the cell chosen; chosen(): the cell to mark.
// It is drawn by (rows of numbers, scale, names of rows, names of columns).
function matrix(holder, label, choose, chosen) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  const rowMark = make("div", { class: "row-mark" });
  const cellMark = make("div", { class: "cell-mark" });
  holder.classList.add("matrix");
  holder.tabIndex = 0;
  holder.setAttribute("role", "application");
  holder.append(canvas, rowMark, cellMark);
  const nameAxes = axisNames(holder);
  let rows = 1, columns = 1, values = [], names = [[], []];
  hover(canvas, () => [rows, columns], (row, column) => {
    const at = (side, place) => (names[side].length ? `“${names[side][place]}” (${place})` : `feature ${place}`);
    return `${at(0, row)}, ${at(1, column)}: ${Number.isNaN(values[row][column]) ? "masked" : number(values[row][column])}`;
  });
  holder.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (share, size) => Math.min(size - 1, Math.max(0, Math.floor(share * size)));
    choose(
      at((event.clientY - box.top) / box.height, rows),
      at((event.clientX - box.left) / box.width, columns),
    );
  });
  holder.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [row, column] = chosen();
    choose(
      Math.min(rows - 1, Math.max(0, (row ?? 0) + step[0])),
      Math.min(columns - 1, Math.max(0, (column ?? 0) + step[1])),
    );
  });
  return (newValues, scale, rowNames = [], columnNames = []) => {
    values = newValues;
    names = [rowNames, columnNames];
    [rows, columns] = [values.length, values[0].length];
    paint(canvas, rows, columns, (row, column) => values[row][column], scale);
    holder.setAttribute(
      "aria-label", `${label}, ${rows} by ${columns}; arrow keys choose`,
    );
    const [row, column] = chosen();
    nameAxes(names, [row, column]);
    mark(rowMark, row, rows, null, 1);
    mark(cellMark, row, rows, column, columns);
    rowMark.hidden = row === null;
    cellMark.hidden = column === null || column >= columns;
  };
}

// Lays a mark over a cell of a map, a whole row, or a whole column.
function mark(element, row, rows, column, columns) {
  Object.assign(element.style, {
    top: row === null ? "0" : `${(100 * row) / rows}%`, height: row === null ? "100%" : `${100 / rows}%`,
    left: column === null ? "0" : `${(100 * column) / columns}%`, width: column === null ? "100%" : `${100 / columns}%`,
  });
}

const largestOf = (rows) => Math.max(...rows.map(largest));

// Gives an element the colour of a share, and text that can be read on it.
function tint(element, share) {
  const rgb = shade(share);
  const bright = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2];
  element.style.background = `rgb(${rgb.map(Math.round).join(" ")})`;
  element.style.color = bright > 140 ? "#10151c" : "#f5f7fa";
}

// A bar of a share in [0, 1].
function bar(share, kind = "") {
  const fill = make("span", { class: `fill ${kind}` });
  fill.style.width = `${100 * Math.min(1, Math.max(0, share))}%`;
  return make("span", { class: "bar-track", "aria-hidden": "true" }, fill);
}
