// Puts the parts together.

const themeParts = [];
function onThemeChange(part) {
  themeParts.push(part);
}

function startVectors() {
  for (const holder of document.querySelectorAll("[data-vector]")) {
    const { vector: name, label, layer } = holder.dataset;
    if (!reading.taps[name]) {
      holder.remove();
      continue;
    }
    const draw = vector(holder, label);
    onChange(() => draw(tap(name, layer === undefined ? view.layer : Number(layer))[view.token]));
  }
}

function startPositions() {
  const holder = document.querySelector("[data-matrix=positions]");
  if (!reading.taps.positions) {
    holder.closest("details").remove();
    return;
  }
  if (!["sinusoidal", "learned"].includes(model.positional_encoding)) return;
  const draw = matrix(holder, "positions", (token) => select({ token }), () => [view.token, null]);
  onChange(() => draw(tap("positions"), largestOf(tap("positions")), reading.tokens.map(tokenName)));
}

function startWords() {
  const words = {
    ...model, title: data.title, root: short(Math.sqrt(model.embed_dim)),
    activation: { gelu_tanh: "GELU", gelu: "GELU", relu: "ReLU" }[model.activation] ?? model.activation,
  };
  const holds = {
    scaled: model.positional_encoding === "sinusoidal", mlp: Boolean(reading.taps.mlp_output),
    attention_only: !reading.taps.mlp_output, alibi: model.positional_encoding === "alibi",
    live, stored: !live, added: ["sinusoidal", "learned"].includes(model.positional_encoding),
    not_added: !["sinusoidal", "learned"].includes(model.positional_encoding),
    rotary: model.positional_encoding === "rotary", causal: model.causal,
  };
  for (const place of document.querySelectorAll("[data-text]")) {
    place.textContent = words[place.dataset.text];
  }
  for (const part of document.querySelectorAll("[data-if]")) {
    part.hidden = !holds[part.dataset.if];
  }
  const count = model.num_params.toLocaleString("en");
  byId("facts").textContent =
    `${count} parameters · ${model.num_layers} layers · ${model.num_heads} heads a layer · ${model.embed_dim} features`
    + ` · a vocabulary of ${model.vocab_size} · reads ${model.context_length} tokens at most`;
  const notes = byId("notes");
  notes.hidden = data.notes.length === 0;
  notes.append(...data.notes.map((note) => make("li", {}, note)));
  // the map is open from the start where there is room
  document.querySelector("details.map").open = matchMedia("(min-width: 62rem)").matches;
  onReading(() => {
    const sizes = {
      T: numTokens(), S: numTokens(), L: model.num_layers, H: model.num_heads,
      K: model.head_dim, D: model.embed_dim, F: model.mlp_dim, V: model.vocab_size,
    };
    for (const place of document.querySelectorAll("[data-shape]")) {
      place.textContent = `[${[...place.dataset.shape].map((axis) => sizes[axis]).join(", ")}]`;
      place.title = [...place.dataset.shape].join(", ");
    }
    byId("ids").replaceChildren(...reading.tokens.map((id, place) =>
      make("li", {}, tokenButton(place), make("small", {}, `${id}`))));
  });
}

reading = uncut = live ? readLive(data.tokens, data.steps.length - 1, []) : readStored();
Object.assign(view, mostCostly(), { token: numTokens() - 1 });
startWords();
startText();
startVectors();
startPositions();
startOverview();
startProduct();
startHead();
startConcatenated();
startLens();
startNext();
startPlayback();
if (live) {
  startSurgery();
  startNorms();
  startMatrices();
  startRotation();
  startFeatures();
}
startView();
document.querySelector("[data-skip]").addEventListener("click", (event) => {
  event.preventDefault();
  byId("tour").focus();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  palette = null;
  for (const part of themeParts) part();
  show();
});
// What is scrolled to stands below the bar, however many lines that has.
new ResizeObserver(([{ target }]) => {
  document.documentElement.style.scrollPaddingTop = `${target.getBoundingClientRect().height}px`;
}).observe(document.querySelector(".bar"));
for (const part of readingParts) part();
readLink();
// For the console: inside.trace([0, 5, 3]).taps.weights[0][1] are the weights of a head.
window.inside = { view, select, language, draw, nextTokens, reading: () => reading };
if (live) inside.trace = (tokens, edits) => trace(tokens, weightsAt(view.step), edits);
