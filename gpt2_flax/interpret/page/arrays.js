// The data of the page: arrays, numbers and tokens, and how they are written.

const data = JSON.parse(document.getElementById("data").textContent);

// {shape, data: base64 of little-endian float32} -> a function from leading indices to
// the values that they leave: array(layer, head, token) -> Float32Array.
function decode({ shape, data: base64 }) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = new Float32Array(bytes.length / 4);
  for (let i = 0; i < values.length; i++) values[i] = view.getFloat32(4 * i, true);
  const array = (...indices) => {
    let start = 0, size = values.length;
    indices.forEach((index, axis) => {
      size /= shape[axis];
      start += index * size;
    });
    return values.subarray(start, start + size);
  };
  array.shape = shape;
  return array;
}

const arrays = Object.fromEntries(
  Object.entries(data.arrays).map(([name, array]) => [name, decode(array)]),
);
const logits = decode(data.next.logits);
const oracle = data.oracle && decode(data.oracle);
const numTokens = data.tokens.length;
const sizes = {
  T: numTokens, S: numTokens, L: data.model.num_layers, H: data.model.num_heads,
  K: data.model.head_dim, D: data.model.embed_dim, F: data.model.mlp_dim,
  V: data.model.vocab_size,
};

// A token as a person can see it, white space included.
function tokenName(id) {
  const name = data.names[id] ?? `#${id}`;
  if (name === "") return "∅";
  const escape = (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`;
  return name.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^ | $/g, "␣")
    .replace(/[\p{C}\p{Zl}\p{Zp}]/gu, escape);  // else unseen, or it turns what is around it
}
const nameAt = (place) => tokenName(data.tokens[place]);
const nextId = (place) => data.tokens[place + 1] ?? data.following[0];

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
const sum = (values) => values.reduce((total, value) => total + value, 0);

// An element; children are elements or text, never markup.
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A token that can be clicked, wherever it stands.
function tokenButton(place, extra = "") {
  const label = `token ${place}: ${nameAt(place)}`;
  return make(
    "button",
    { type: "button", class: `token ${extra}`, "data-token": place, "aria-label": label },
    nameAt(place),
  );
}
