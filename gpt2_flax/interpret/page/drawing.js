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
  canvas.addEventListener("pointermove", (event) => {
    const place = Math.floor((event.offsetX / canvas.clientWidth) * values.length);
    canvas.title = `feature ${place}: ${number(values[place] ?? NaN)}`;
  });
  return (newValues, scale = largest(newValues)) => {
    values = newValues;
    paint(canvas, 1, values.length, (_, column) => values[column], scale);
    const first = Array.from(values.slice(0, 3), (v) => number(v, 2)).join(", ");
    some.replaceChildren(`${first}, … `, make("u", {}, `all ${values.length}`));
    list();
  };
}

// A map of numbers in which a cell can be chosen by mouse or arrow keys.
//   choose(row, column): called with the cell chosen; chosen(): the cell to mark.
function matrix(holder, label, choose, chosen) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  const rowMark = make("div", { class: "row-mark" });
  const cellMark = make("div", { class: "cell-mark" });
  holder.classList.add("matrix");
  holder.tabIndex = 0;
  holder.setAttribute("role", "application");
  holder.append(canvas, rowMark, cellMark);
  let rows = 1, columns = 1;
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
      Math.min(rows - 1, Math.max(0, row + step[0])),
      Math.min(columns - 1, Math.max(0, (column ?? 0) + step[1])),
    );
  });
  return (newRows, newColumns, value, scale) => {
    [rows, columns] = [newRows, newColumns];
    paint(canvas, rows, columns, value, scale);
    holder.setAttribute(
      "aria-label", `${label}, ${rows} by ${columns}; arrow keys choose`,
    );
    const [row, column] = chosen();
    rowMark.style.top = `${(100 * row) / rows}%`;
    rowMark.style.height = `${100 / rows}%`;
    cellMark.hidden = column === null || column >= columns;
    if (cellMark.hidden) return;
    Object.assign(cellMark.style, {
      top: rowMark.style.top, height: rowMark.style.height,
      left: `${(100 * column) / columns}%`, width: `${100 / columns}%`,
    });
  };
}

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
