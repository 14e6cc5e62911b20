// The data of the page: arrays, numbers and tokens, and how they are written.

const data = JSON.parse(document.getElementById("data").textContent);
const { model } = data;

// {shape, data: base64 of little-endian numbers, type} -> nested arrays, the last axis typed:
// array[layer][head][token] is a Float32Array. Whole numbers are steps of size `scale`.
function decode({ shape, data: base64, type = "f4", scale }) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const [size, read] = {
    f4: [4, (at) => view.getFloat32(at, true)],
    f8: [8, (at) => view.getFloat64(at, true)],
    i2: [2, (at) => scale * view.getInt16(at, true)],
  }[type];
  const values = new (type === "f8" ? Float64Array : Float32Array)(bytes.length / size);
  for (let i = 0; i < values.length; i++) values[i] = read(size * i);
  const nest = (axis, start, length) => {
    if (axis === shape.length - 1) return values.subarray(start, start + length);
    const part = length / shape[axis];
    return Array.from({ length: shape[axis] }, (_, i) => nest(axis + 1, start + i * part, part));
  };
  return nest(0, 0, values.length);
}

// A tree of arrays as JSON -> the same tree, decoded.
function decodeTree(tree) {
  if ("shape" in tree) return decode(tree);
  return Object.fromEntries(Object.entries(tree).map(([name, part]) => [name, decodeTree(part)]));
}

// A token as a person can see it, white space included.
const tokenName = (id) => shownName(data.names[id] ?? `#${id}`);
function shownName(name) {
  if (name === "") return "∅";
  const escape = (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`;
  return name.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣")
    .replace(/[\p{C}\p{Zl}\p{Zp}]/gu, escape);  // else unseen, or it turns what is around it
}

// Numbers: a real minus sign, and digits enough to tell them apart.
function number(value, digits = 3) {
  if (value === null || Number.isNaN(value)) return "–";
  if (value === -Infinity) return "−∞";
  const text = Math.abs(value) >= 1000 ? value.toFixed(0) : value.toFixed(digits);
  return text.replace(/^-(?=[0.]*$)/, "").replace("-", "−");
}
const short = (value) => String(Number(value.toFixed(3)));
const percent = (value) =>
  value >= 0.0995 ? `${(100 * value).toFixed(1)}%`
    : value >= 0.0001 || value === 0 ? `${(100 * value).toFixed(2)}%` : "<0.01%";

// An element; children are elements or text, never markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const byId = (id) => document.getElementById(id);
const button = (label, act, attributes = {}) => {
  const element = make("button", { type: "button", ...attributes }, label);
  element.addEventListener("click", act);
  return element;
};
