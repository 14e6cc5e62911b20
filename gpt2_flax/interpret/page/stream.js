// The residual stream: what the model would say after each layer, and at the end.

function startLens() {
  const { ids, probabilities, of_next: ofNext } = data.lens;
  const label = (row) => (row === 0 ? "at the start" : `after layer ${row - 1}`);
  const table = document.getElementById("lens");
  const head = make("tr", {}, make("th", {}));
  for (let t = 0; t < numTokens; t++) head.append(make("th", { scope: "col" }, tokenButton(t)));
  const rows = ids.map((row, layer) => {
    const cells = [];
    for (let t = 0; t < numTokens; t++) {
      const cell = tokenButton(t, "cell");
      cell.replaceChildren(tokenName(row[t][0]));
      const share = probabilities[layer][t][0];
      cell.setAttribute("aria-label", `at token ${t}, ${label(layer)}: ${tokenName(row[t][0])}, ${percent(share)}`);
      cell.title = percent(share);
      cell.dataset.share = share;
      cell.classList.toggle("right", row[t][0] === nextId(t));
      cells.push(make("td", {}, cell));
    }
    return make("tr", {}, make("th", { scope: "row" }, label(layer)), ...cells);
  });
  table.append(make("thead", {}, head), make("tbody", {}, ...rows.reverse()));
  const colour = () => {
    for (const cell of table.querySelectorAll(".cell")) tint(cell, Number(cell.dataset.share));
  };
  colour();
  onThemeChange(colour);

  onChange(() => {
    const t = view.token, next = nextId(t);
    const columns = ids[0][0].length;
    const title = make("tr", {}, make("th", { scope: "col" }, "read"));
    for (let k = 1; k <= columns; k++) title.append(make("th", { scope: "col" }, `${k}.`));
    if (next !== undefined) title.append(make("th", { scope: "col" }, `“${tokenName(next)}”, which came`));
    const body = ids.map((row, layer) => {
      const cells = row[t].map((id, k) => make("td", {}, tokenName(id), " ",
        make("small", {}, percent(probabilities[layer][t][k]))));
      if (next !== undefined) {
        const share = ofNext[layer][t];
        cells.push(make("td", { class: "weight" }, bar(share), make("span", {}, percent(share))));
      }
      return make("tr", {}, make("th", { scope: "row" }, label(layer)), ...cells);
    });
    const column = head.children[t + 1], holder = table.parentElement;
    const edge = head.children[0].offsetWidth;
    if (column.offsetLeft < holder.scrollLeft + edge
        || column.offsetLeft + column.offsetWidth > holder.scrollLeft + holder.clientWidth) {
      holder.scrollLeft = column.offsetLeft - (holder.clientWidth + edge) / 2;
    }
    document.getElementById("lens-token").replaceChildren(
      make("thead", {}, title), make("tbody", {}, ...body));
    showNorms();
  });
}

function showNorms() {
  const t = view.token, rows = [];
  const entries = [["residual_before", "stream at the start", 0]];
  for (let layer = 0; layer < sizes.L; layer++) {
    entries.push(["attention_output", `+ attention ${layer}`, layer]);
    if (data.norms.mlp_output) entries.push(["mlp_output", `+ feed-forward ${layer}`, layer]);
    entries.push(["residual_after", `= stream after layer ${layer}`, layer]);
  }
  const length = ([name, , layer]) => data.norms[name][layer][t];
  const most = Math.max(...entries.map(length));
  for (const entry of entries) {
    const kind = entry[1][0] === "+" ? "plain" : "of-stream";
    rows.push(make("div", { class: "norm" }, make("span", { class: "label" }, entry[1]),
      bar(length(entry) / most, kind), make("span", { class: "value" }, number(length(entry), 2))));
  }
  document.getElementById("norms").replaceChildren(...rows);
}

// The probabilities of the next token at a place: [id, model's, oracle's or null], and
// the KL divergence of the model's from the oracle's, in nats, where both are whole.
function nextTokens(place, temperature) {
  const values = Array.from(logits(place), (logit) => logit / temperature);
  const top = Math.max(...values);
  let total = sum(values.map((value) => Math.exp(value - top)));
  if (data.next.others) {
    const others = data.next.others[place][data.temperatures.indexOf(temperature)];
    total += Math.exp(others - top);
  }
  const truth = oracle && sum(Array.from(oracle(place))) > 0.5 ? oracle(place) : null;
  const rows = values.map((value, k) => {
    const id = data.next.ids[place][k];
    return [id, Math.exp(value - top) / total, truth && (truth[id] ?? 0)];
  });
  const logTotal = top + Math.log(total);
  const divergence = truth && !data.next.others
    ? sum(rows.map(([, , p], k) => (p > 0 ? p * (Math.log(p) - values[k] + logTotal) : 0)))
    : null;
  return { rows, truth, divergence };
}

const MOST_SHOWN = 14;

function startNext() {
  const slider = document.getElementById("temperature");
  slider.min = 0;
  slider.max = data.temperatures.length - 1;
  const choose = (intoLink) =>
    select({ temperature: data.temperatures[Number(slider.value)] }, intoLink);
  slider.addEventListener("input", () => choose(false));
  slider.addEventListener("change", () => choose(true));
  onChange(() => {
    slider.value = data.temperatures.indexOf(view.temperature);
    const says = view.temperature.toFixed(1);
    slider.setAttribute("aria-valuetext", says);
    document.getElementById("temperature-value").textContent = says;
    showNext();
  });
}

function showNext() {
  const { rows, truth, divergence } = nextTokens(view.token, view.temperature);
  const came = nextId(view.token);
  const wanted = new Set(rows.slice(0, MOST_SHOWN).map(([id]) => id));
  if (truth) {
    const likely = [...rows].sort((a, b) => b[2] - a[2]).slice(0, MOST_SHOWN);
    for (const [id, , p] of likely) if (p > 0) wanted.add(id);
  }
  const shown = rows.filter(([id]) => wanted.has(id) || id === came);
  const most = Math.max(...shown.flatMap(([, p, q]) => [p, q ?? 0]));
  const lines = shown.map(([id, p, q]) => {
    const bars = [bar(p / most)], values = [make("span", { class: "p" }, percent(p))];
    if (truth) {
      bars.push(bar(q / most, "truth"));
      values.push(make("span", { class: "q" }, percent(q)));
    }
    return make("div", { class: id === came ? "next-row came" : "next-row", "data-id": id },
      make("span", { class: "label" }, tokenName(id)), make("span", { class: "bars" }, ...bars),
      make("span", { class: "values" }, ...values));
  });
  const others = rows.length - shown.length + data.next.num_others;
  const rest = 1 - sum(shown.map(([, p]) => p));
  if (others) {
    lines.push(make("p", { class: "caption" },
      `${others} other tokens share ${percent(Math.max(0, rest))}.`));
  }
  const legend = make("p", { class: "legend" }, make("span", { class: "swatch" }), " the model ");
  if (truth) legend.append(make("span", { class: "swatch truth" }), " the language itself ");
  document.getElementById("next").replaceChildren(legend, ...lines);

  const p = came === undefined ? undefined : rows.find(([id]) => id === came)?.[1];
  document.getElementById("came").textContent = came === undefined
    ? `After “${nameAt(view.token)}”, the end of the text. What would come next?`
    : `After “${nameAt(view.token)}” came “${tokenName(came)}”`
      + (p === undefined ? "." : `, which the model held ${percent(p)} likely.`);
  document.getElementById("oracle-note").textContent = oracleNote(truth, divergence);
}

function oracleNote(truth, divergence) {
  if (!oracle) return "";
  if (!truth) {
    return "The language cannot have begun like this, so it has no true probabilities here.";
  }
  const distance = divergence === null ? "" :
    ` At this temperature the model is ${number(divergence, 4)} nats away from it (KL divergence).`;
  return `The true distribution is computed exactly from the process that writes the text.${distance}`;
}
