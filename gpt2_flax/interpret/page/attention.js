// Inside attention: the overview of heads, and the steps of the one that is open.

const heads = data.heads;
const products = (t, s) => arrays.scores(view.layer, view.head, t)[s] * data.divisors[view.layer];

function startOverview() {
  const holder = document.getElementById("overview");
  const measured = document.getElementById("measured");
  measured.textContent = heads
    ? `· Scores and costs are means over ${heads.measured_on}.`
    : "· There is nothing to measure scores on.";
  const most = heads ? Math.max(1e-9, ...heads.ablation.flat()) : 1;
  holder.classList.toggle("dense", sizes.H > 6);
  const cards = [];
  const maps = [];
  for (let layer = 0; layer < data.num_layers; layer++) {
    const row = make("div", { class: "head-row", role: "group", "aria-label": `layer ${layer}` });
    for (let head = 0; head < sizes.H; head++) {
      const canvas = make("canvas", { "aria-hidden": "true" });
      const card = make(
        "button", { type: "button", class: "head-card", "data-layer": layer, "data-head": head },
        make("span", { class: "head-name" }, `layer ${layer} · head ${head}`), canvas,
      );
      if (heads) {
        const cost = heads.ablation[layer][head];
        card.append(
          make("span", { class: "cost" }, "removing it costs ", make("b", {}, number(cost))),
          bar(cost / most, "plain"), scoreList(layer, head),
        );
      }
      card.addEventListener("click", () => {
        select({ layer, head });
        document.getElementById("step-query").scrollIntoView();
      });
      cards.push(card);
      row.append(card);
      maps.push(() => paintMap(canvas, layer, head));
    }
    holder.append(make("h3", {}, `Layer ${layer}`), row);
  }
  paintSome(maps);
  onThemeChange(() => paintSome(maps));
  onChange(() => {
    for (const card of cards) {
      const open = +card.dataset.layer === view.layer && +card.dataset.head === view.head;
      card.setAttribute("aria-pressed", open);
    }
  });
}

// A big model has many maps: between batches of them the tab can do other things.
function paintSome(maps, from = 0) {
  maps.slice(from, from + 50).forEach((map) => map());
  if (from + 50 < maps.length) setTimeout(() => paintSome(maps, from + 50));
}

function paintMap(canvas, layer, head) {
  const weights = arrays.weights(layer, head);
  paint(canvas, numTokens, numTokens, (t, s) => weights[t * numTokens + s], 1);
}

function scoreList(layer, head) {
  const list = make("span", { class: "scores" });
  for (const name of ["previous", "first", "induction", "entropy"]) {
    const value = heads[name][layer][head];
    list.append(make("span", {}, `${name} `, make("b", {}, number(value, 2))));
  }
  return list;
}

function startHead() {
  const cell = () => [view.token, chosenKey()];
  const choose = (token, key) => select({ token, key: key <= token ? key : null });
  const row = (token) => select({ token });
  const map = (name, pick, chosen) => matrix(
    document.querySelector(`[data-matrix=${name}]`), name, pick, chosen);
  const vectors = ["query", "key", "value"].map((name) => [
    name, map(name, row, () => [name === "query" ? view.token : chosenKey(), null])]);
  const square = ["products", "scores", "masked", "weights"].map((name) => [
    name, map(name, choose, cell)]);
  onChange(() => {
    const { layer, head } = view;
    for (const [name, draw] of vectors) {
      const values = arrays[name](layer, head);
      draw(numTokens, sizes.K, (t, k) => values[t * sizes.K + k], largest(values));
    }
    const scores = arrays.scores(layer, head), weights = arrays.weights(layer, head);
    const at = (values) => (t, s) => values[t * numTokens + s];
    const value = {
      products: at(scores), scores: at(scores), weights: at(weights),
      masked: (t, s) => (s > t ? NaN : scores[t * numTokens + s]),
    };
    for (const [name, draw] of square) {
      draw(numTokens, numTokens, value[name], name === "weights" ? 1 : largest(scores));
    }
    document.getElementById("divisor").textContent = short(data.divisors[layer]);
    showAttended();
    showCell();
    showRow();
    showProduct();
    showMix();
  });
}

// The text itself, shaded by how much the selected token looks at each.
function showAttended() {
  const weights = arrays.weights(view.layer, view.head, view.token);
  document.getElementById("attended").replaceChildren(...data.tokens.map((_, s) => {
    const token = tokenButton(s, s > view.token ? "later" : "cell");
    if (s <= view.token) tint(token, weights[s]);
    token.title = s > view.token ? "masked" : `weight ${number(weights[s])}`;
    return token;
  }));
}

function showCell() {
  const t = view.token, s = chosenKey();
  const score = arrays.scores(view.layer, view.head, t)[s];
  const weight = arrays.weights(view.layer, view.head, t)[s];
  document.getElementById("cell").textContent =
    `“${nameAt(t)}” (${t}) looks at “${nameAt(s)}” (${s}): query · key ${number(products(t, s))},`
    + ` scaled ${number(score)}, weight ${number(weight)}`;
}

function showRow() {
  const t = view.token, key = chosenKey();
  const scores = arrays.scores(view.layer, view.head, t);
  const weights = arrays.weights(view.layer, view.head, t);
  const rows = [];
  for (let s = 0; s <= t; s++) {
    const cells = [products(t, s), scores[s], scores[s]].map((v) => make("td", {}, number(v)));
    const weight = make("td", { class: "weight" }, bar(weights[s]), make("span", {}, number(weights[s])));
    const row = make("tr", s === key ? { class: "key-row" } : {},
      make("th", { scope: "row" }, tokenButton(s), make("small", {}, ` ${s}`)), ...cells, weight);
    rows.push(row);
  }
  const later = numTokens - 1 - t;
  if (later) {
    const says = `${later} later token${later > 1 ? "s" : ""}`;
    rows.push(make("tr", { class: "masked-row" }, make("th", { scope: "row" }, says),
      make("td", {}, "…"), make("td", {}, "…"), make("td", {}, "−∞"),
      make("td", { class: "weight" }, bar(0), make("span", {}, number(0)))));
  }
  document.querySelector("#row tbody").replaceChildren(...rows);
  const topScore = Math.max(...scores.slice(0, t + 1));
  const shares = Array.from(scores.slice(0, t + 1), (score) => Math.exp(score - topScore));
  const total = sum(shares);
  // as with ALiBi, which adds to the scores on their way to the softmax
  document.getElementById("row-note").hidden =
    shares.every((share, s) => Math.abs(share / total - weights[s]) < 1e-3);
  const holder = document.querySelector("#row").parentElement;
  holder.scrollTop = rows[key].offsetTop - holder.clientHeight / 2;
}

// One dot product, feature by feature; the key may be chosen here by keyboard too.
let productParts = null;

function startProduct() {
  const holder = document.getElementById("product");
  const choice = make("select", { id: "key-choice" });
  data.tokens.forEach((_, s) => choice.append(make("option", { value: s }, `${s} ${nameAt(s)}`)));
  choice.addEventListener("change", () => select({ key: Number(choice.value) }));
  const title = make("h3", {}, "One score: the query of ", make("span", { class: "chosen" }),
    " · ", make("label", { for: "key-choice" }, "the key of "), choice);
  const strip = (label) => {
    const row = make("div", {});
    return [row, vector(row, label)];
  };
  const rows = ["query", "× key", "= products"].map(strip);
  const result = make("p", { class: "readout" });
  holder.append(title, ...rows.map(([row]) => row), result);
  productParts = { choice, draw: rows.map(([, draw]) => draw), result };
}

function showProduct() {
  const { choice, draw, result } = productParts;
  const t = view.token, s = chosenKey();
  [...choice.options].forEach((option, place) => { option.disabled = place > t; });
  choice.value = s;
  const query = arrays.query(view.layer, view.head, t);
  const key = arrays.key(view.layer, view.head, s);
  const terms = query.map((q, k) => q * key[k]);
  [query, key, terms].forEach((values, i) => draw[i](values));
  const total = sum(Array.from(terms)), score = arrays.scores(view.layer, view.head, t)[s];
  const divisor = data.divisors[view.layer];
  result.textContent = Math.abs(total / divisor - score) < 1e-3 * (1 + Math.abs(score))
    ? `The products add up to ${number(total)}; ÷ ${short(divisor)} it is ${number(score)}.`
    : `The products add up to ${number(total)}. This model's score, ${number(score)}, has`
      + " its positions in it as well.";
}

function showMix() {
  const t = view.token, holder = document.getElementById("mix");
  const weights = arrays.weights(view.layer, view.head, t);
  const order = Array.from({ length: t + 1 }, (_, s) => s).sort((a, b) => weights[b] - weights[a]);
  const some = order.slice(0, 6), parts = [];
  const weighted = (s) => arrays.value(view.layer, view.head, s).map((v) => v * weights[s]);
  const scale = Math.max(...some.map((s) => largest(weighted(s))));
  for (const s of some) {
    const row = make("div", {});
    const says = make("span", { class: "times" }, `${number(weights[s])} × `, tokenButton(s));
    vector(row, says)(weighted(s), scale);
    parts.push(row);
  }
  const others = order.slice(6);
  if (others.length) {
    const share = sum(others.map((s) => weights[s]));
    parts.push(make("p", { class: "caption" },
      `and ${others.length} more token${others.length > 1 ? "s" : ""}, with ${number(share)} of the weight in all`));
  }
  holder.replaceChildren(...parts);
}

function startConcatenated() {
  const holder = document.getElementById("concatenated");
  const pieces = Array.from({ length: sizes.H }, (_, head) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const piece = make("button", { type: "button", "aria-label": `head ${head}` }, canvas, `${head}`);
    piece.addEventListener("click", () => select({ head }));
    holder.append(piece);
    return [piece, canvas];
  });
  onChange(() => {
    const outputs = pieces.map((_, head) => arrays.head_output(view.layer, head, view.token));
    const scale = Math.max(...outputs.map(largest));
    pieces.forEach(([piece, canvas], head) => {
      paint(canvas, 1, sizes.K, (_, k) => outputs[head][k], scale);
      piece.setAttribute("aria-pressed", head === view.head);
    });
  });
}
