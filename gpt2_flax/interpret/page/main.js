// Puts the parts together.

const themeParts = [];
function onThemeChange(part) {
  themeParts.push(part);
}

function startVectors() {
  for (const holder of document.querySelectorAll("[data-vector]")) {
    const { vector: name, label, layer } = holder.dataset;
    const array = arrays[name];
    if (!array) {
      holder.remove();
      continue;
    }
    const draw = vector(holder, label);
    onChange(() => {
      const layers = { 2: [], 3: [layer === undefined ? view.layer : Number(layer)],
        4: [view.layer, view.head] }[array.shape.length];
      draw(array(...layers, view.token));
    });
  }
}

function startPositions() {
  const holder = document.querySelector("[data-matrix=positions]");
  if (!arrays.positions) {
    holder.closest("details").remove();
    return;
  }
  const draw = matrix(holder, "positions", (token) => select({ token }), () => [view.token, null]);
  const [rows, columns] = arrays.positions.shape, values = arrays.positions();
  onChange(() => draw(rows, columns, (t, d) => values[t * columns + d], largest(values)));
}

function startText() {
  const { model } = data;
  const words = {
    ...model, title: data.title, root: short(Math.sqrt(model.embed_dim)),
    activation: { gelu_tanh: "GELU", gelu: "GELU", relu: "ReLU" }[model.activation] ?? model.activation,
  };
  const holds = {
    scaled: model.positional_encoding === "sinusoidal", mlp: Boolean(arrays.mlp_output),
    attention_only: !arrays.mlp_output,
  };
  for (const place of document.querySelectorAll("[data-text]")) {
    place.textContent = words[place.dataset.text];
  }
  for (const part of document.querySelectorAll("[data-if]")) {
    part.hidden = !holds[part.dataset.if];
  }
  for (const place of document.querySelectorAll("[data-shape]")) {
    place.textContent = `[${[...place.dataset.shape].map((axis) => sizes[axis]).join(", ")}]`;
    place.title = [...place.dataset.shape].join(", ");
  }
  const count = model.num_params.toLocaleString("en");
  document.getElementById("facts").textContent =
    `${count} parameters · ${sizes.L} layers · ${sizes.H} heads a layer · ${sizes.D} features`
    + ` · a vocabulary of ${sizes.V} · reads ${model.context_length} tokens at most`;
  const notes = document.getElementById("notes");
  notes.hidden = data.notes.length === 0;
  notes.append(...data.notes.map((note) => make("li", {}, note)));
  document.getElementById("ids").append(...data.tokens.map((id, place) =>
    make("li", {}, tokenButton(place), make("small", {}, `${id}`))));
}

startText();
startVectors();
startPositions();
startOverview();
startProduct();
startHead();
startConcatenated();
startLens();
startNext();
startView();
document.querySelector("[data-skip]").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("tour").focus();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  palette = null;
  for (const part of themeParts) part();
  show();
});
// What is scrolled to stands below the bar, however many lines that has.
const keepBelowBar = () => {
  const { height } = document.querySelector(".bar").getBoundingClientRect();
  document.documentElement.style.scrollPaddingTop = `${height}px`;
};
window.addEventListener("resize", keepBelowBar);
readLink();
keepBelowBar();
