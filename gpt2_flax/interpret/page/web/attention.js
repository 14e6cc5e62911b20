// Inside attention: the overview of heads, and the steps of the one that is open.

function startOverview() {
  const holder = byId("overview");
  holder.classList.toggle("dense", model.num_heads > 6);
  const cards = [], maps = [];
  for (let layer = 0; layer < reading.layers; layer++) {
    const row = make("div", { class: "head-row", role: "group", "aria-label": `layer ${layer}` });
    for (let head = 0; head < model.num_heads; head++) {
      const canvas = make("canvas", { "aria-hidden": "true" });
      const measured = make("span", { class: "measured" });
      const card = button(make("span", { class: "head-name" }, `layer ${layer} · head ${head}`), () => {
        select({ layer, head });
        byId("step-query").scrollIntoView();
      }, { class: "head-card", "data-layer": layer, "data-head": head });
      const map = make("span", { class: "card-map" }, canvas);
      const nameAxes = axisNames(map);
      card.append(map, measured);
      const weights = () => tap("weights", layer, head);
      hover(canvas, () => [numTokens(), numTokens()], (t, s) =>
        `“${nameAt(t)}” looks at “${nameAt(s)}”: ${s > t && model.causal ? "masked" : number(weights()[t][s])}`);
      cards.push([card, measured, layer, head]);
      row.append(card);
      maps.push(() => {
        paint(canvas, numTokens(), numTokens(), (t, s) => weights()[t][s], 1);
        const names = reading.tokens.map(tokenName);
        nameAxes([names, names], [null, null]);
      });
    }
    holder.append(make("h3", {}, `Layer ${layer}`), row);
  }
  onThemeChange(() => paintSome(maps));
  onReading(() => {
    paintSome(maps);
    showMeasured(cards);
  });
  onChange(() => {
    for (const [card, , layer, head] of cards) {
      card.setAttribute("aria-pressed", layer === view.layer && head === view.head);
      card.classList.toggle("is-off", isOff(layer, head));
    }
  });
}

const isOff = (layer, head) =>
  view.cut.includes(`${layer}.${head}`) || view.cut.includes(`${layer}.attention`);

// A big model has many maps: between batches of them the tab can do other things.
function paintSome(maps, from = 0) {
  maps.slice(from, from + 50).forEach((map) => map());
  if (from + 50 < maps.length) setTimeout(() => paintSome(maps, from + 50));
}

// Scores and costs: of this step of the model, whole, whatever is cut now.
let measuredHeads = null;
function showMeasured(cards) {
  const { heads } = reading;
  if (heads === measuredHeads) return;
  measuredHeads = heads;
  byId("measured").textContent = heads
    ? `· Scores and costs are means over ${heads.measured_on}${live ? ", of the whole model" : ""}.`
    : "· There is nothing to measure scores on.";
  if (!heads) return;
  const most = Math.max(1e-9, ...heads.ablation.flat());
  for (const [, measured, layer, head] of cards) {
    const cost = heads.ablation[layer][head];
    measured.replaceChildren(
      make("span", { class: "cost" }, "removing it costs ", make("b", {}, number(cost))),
      bar(cost / most, "plain"),
      make("span", { class: "scores" }, ...["previous", "first", "induction", "entropy"].map((name) =>
        make("span", {}, `${name} `, make("b", {}, number(heads[name][layer][head], 2))))));
  }
}

const masked = (rows, hidden = NaN) =>
  rows.map((row, t) => Array.from(row, (value, s) => (model.causal && s > t ? hidden : value)));

function startHead() {
  const cell = () => [view.token, chosenKey()];
  const choose = (token, key) => select({ token, key: key <= token || !model.causal ? key : null });
  const asks = (token) => select({ token }), asked = (key) => select({ key });
  const map = (name, pick, chosen) =>
    matrix(document.querySelector(`[data-matrix=${name}]`), name, pick, chosen);
  const vectors = ["query", "key", "value"].map((name) => [
    name, map(name, ...(name === "query"
      ? [asks, () => [view.token, null]] : [asked, () => [chosenKey(), null]]))]);
  const names = ["products", "scores", "biased_scores", "masked", "weights"];
  const square = names.map((name) => [name, map(name, choose, cell)]);
  const alibi = model.positional_encoding === "alibi" && live;
  document.querySelector("[data-matrix=biased_scores]").closest("figure").hidden = !alibi;
  onChange(() => {
    const tokens = reading.tokens.map(tokenName);
    for (const [name, draw] of vectors) draw(tap(name), largestOf(tap(name)), tokens);
    const scores = tap("scores"), biased = tap("biased_scores") ?? scores;
    const divisor = scoreDivisor(model, view.layer);
    const values = {
      products: scores.map((row) => Array.from(row, (score) => score * divisor)), scores,
      biased_scores: biased, masked: masked(biased), weights: tap("weights"),
    };
    for (const [name, draw] of square) {
      if (name === "biased_scores" && !alibi) continue;
      draw(values[name], name === "weights" ? 1 : largestOf(values[name].map((r) => r.filter(isFinite))),
        tokens, tokens);
    }
    byId("divisor").textContent = short(divisor);
    byId("slope").textContent = alibi ? short(alibiSlope(model.num_heads, view.head)) : "";
    showAttended();
    showCell();
    showRow(alibi);
    showProduct();
    showMix();
  });
  onScroll(() => byId("row"), () => {
    const row = document.querySelector("#row .key-row"), holder = row.closest(".scroll");
    holder.scrollTop = row.offsetTop - holder.clientHeight / 2;
  });
}

const queryOf = (t) => (tap("rotated_query") ?? tap("query"))[t];
const keyOf = (s) => (tap("rotated_key") ?? tap("key"))[s];
const scaledProduct = (t, s) => tap("scores")[t][s] * scoreDivisor(model, view.layer);

// The text itself, shaded by how much the selected token looks at each.
function showAttended() {
  const weights = tap("weights")[view.token];
  byId("attended").replaceChildren(...reading.tokens.map((_, s) => {
    const hidden = model.causal && s > view.token;
    const token = tokenButton(s, hidden ? "later" : "cell");
    if (!hidden) tint(token, weights[s]);
    token.title = hidden ? "masked" : `weight ${number(weights[s])}`;
    return token;
  }));
}

function showCell() {
  const t = view.token, s = chosenKey();
  byId("cell").textContent =
    `“${nameAt(t)}” (${t}) looks at “${nameAt(s)}” (${s}): query · key ${number(scaledProduct(t, s))},`
    + ` scaled ${number(tap("scores")[t][s])}, weight ${number(tap("weights")[t][s])}`;
}

function showRow(alibi) {
  const t = view.token, key = chosenKey();
  const scores = tap("scores")[t], biased = (tap("biased_scores") ?? tap("scores"))[t];
  const weights = tap("weights")[t];
  const count = lastKey() + 1;
  byId("biased-column").hidden = !alibi;
  const rows = Array.from({ length: count }, (_, s) => {
    const values = [scaledProduct(t, s), scores[s], ...(alibi ? [biased[s]] : []), biased[s]];
    return make("tr", s === key ? { class: "key-row" } : {},
      make("th", { scope: "row" }, tokenButton(s), make("small", {}, ` ${s}`)),
      ...values.map((v) => make("td", {}, number(v))),
      make("td", { class: "weight" }, bar(weights[s]), make("span", {}, number(weights[s]))));
  });
  const later = numTokens() - count;
  if (later) {
    const says = `${later} later token${later > 1 ? "s" : ""}`;
    rows.push(make("tr", { class: "masked-row" }, make("th", { scope: "row" }, says),
      ...Array.from({ length: alibi ? 3 : 2 }, () => make("td", {}, "…")), make("td", {}, "−∞"),
      make("td", { class: "weight" }, bar(0), make("span", {}, number(0)))));
  }
  document.querySelector("#row tbody").replaceChildren(...rows);
  const shares = softmax(Array.from(biased.slice(0, count)));
  // as with ALiBi where the page has no weights: it adds to the scores before the softmax
  byId("row-note").hidden = shares.every((share, s) => Math.abs(share - weights[s]) < 1e-3);
}

// Two vectors multiplied feature by feature, as three strips; returns what draws them.
function productStrips(holder, labels) {
  const draws = labels.map((label) => {
    const row = make("div", {});
    holder.append(row);
    return vector(row, label);
  });
  return (left, right) => {
    const terms = Float64Array.from(left, (x, i) => x * right[i]);
    [left, right, terms].forEach((values, i) => draws[i](values));
    return sum(terms);
  };
}

// One dot product, feature by feature; the key may be chosen here by keyboard too.
let productParts = null;

function startProduct() {
  const holder = byId("product");
  const choice = make("select", { id: "key-choice" });
  choice.addEventListener("change", () => select({ key: Number(choice.value) }));
  holder.append(make("h3", {}, "One score: the query of ", make("span", { class: "chosen" }),
    " · ", make("label", { for: "key-choice" }, "the key of "), choice));
  const draw = productStrips(holder, ["query", "× key", "= products"]);
  const result = make("p", { class: "readout" });
  holder.append(result);
  productParts = { choice, draw, result };
  onReading(() => choice.replaceChildren(...reading.tokens.map((_, s) =>
    make("option", { value: s }, `${s} ${nameAt(s)}`))));
}

function showProduct() {
  const { choice, draw, result } = productParts;
  const t = view.token, s = chosenKey();
  [...choice.options].forEach((option, place) => { option.disabled = model.causal && place > t; });
  choice.value = s;
  const total = draw(queryOf(t), keyOf(s)), score = tap("scores")[t][s];
  const divisor = scoreDivisor(model, view.layer);
  result.textContent = Math.abs(total / divisor - score) < 1e-3 * (1 + Math.abs(score))
    ? `The products add up to ${number(total)}; ÷ ${short(divisor)} it is ${number(score)}.`
    : `The products add up to ${number(total)}. This model's score, ${number(score)}, has`
      + " its positions in it as well.";
}

function showMix() {
  const t = view.token, weights = tap("weights")[t], count = lastKey() + 1;
  const order = Array.from({ length: count }, (_, s) => s).sort((a, b) => weights[b] - weights[a]);
  const some = order.slice(0, 6), parts = [];
  const weighted = (s) => tap("value")[s].map((v) => v * weights[s]);
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
  byId("mix").replaceChildren(...parts);
}

function startConcatenated() {
  const holder = byId("concatenated");
  const pieces = Array.from({ length: model.num_heads }, (_, head) => {
    const canvas = make("canvas", { "aria-hidden": "true" });
    const piece = make("button", { type: "button", "aria-label": `head ${head}` }, canvas, `${head}`);
    piece.addEventListener("click", () => select({ head }));
    holder.append(piece);
    return [piece, canvas];
  });
  onChange(() => {
    const outputs = pieces.map((_, head) => tap("head_output", view.layer, head)[view.token]);
    const scale = Math.max(...outputs.map(largest));
    pieces.forEach(([piece, canvas], head) => {
      paint(canvas, 1, model.head_dim, (_, k) => outputs[head][k], scale);
      piece.setAttribute("aria-pressed", head === view.head);
    });
  });
}
