// The residual stream: what the model would say after each layer, and how long its vectors are.

function startLens() {
  const label = (row) => (row === 0 ? "at the start" : `after layer ${row - 1}`);
  const table = byId("lens");
  let head = null;
  const colour = () => {
    for (const cell of table.querySelectorAll(".cell")) tint(cell, Number(cell.dataset.share));
  };
  onThemeChange(colour);
  onReading(() => {
    head = make("tr", {}, make("th", {}), ...reading.tokens.map((_, t) => make("th", { scope: "col" }, tokenButton(t))));
    const rows = reading.lens.map((row, layer) => {
      const cells = row.map(({ ids, shares }, t) => {
        const says = tokenName(ids[0]), cell = tokenButton(t, "cell", says);
        cell.setAttribute("aria-label", `at token ${t}, ${label(layer)}: ${says}, ${percent(shares[0])}`);
        cell.title = percent(shares[0]);
        cell.dataset.share = shares[0];
        cell.classList.toggle("right", ids[0] === nextId(t));
        return make("td", {}, cell);
      });
      return make("tr", {}, make("th", { scope: "row" }, label(layer)), ...cells);
    });
    table.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows.reverse()));
    colour();
  });

  onChange(() => {
    const t = view.token, next = nextId(t), columns = reading.lens[0][0].ids.length;
    const title = make("tr", {}, make("th", { scope: "col" }, "read"));
    for (let k = 1; k <= columns; k++) title.append(make("th", { scope: "col" }, `${k}.`));
    if (next !== undefined) title.append(make("th", { scope: "col" }, `“${tokenName(next)}”, which came`));
    const body = reading.lens.map((row, layer) => {
      const { ids, shares, ofNext } = row[t];
      const cells = ids.map((id, k) =>
        make("td", {}, tokenName(id), " ", make("small", {}, percent(shares[k]))));
      if (next !== undefined) {
        cells.push(make("td", { class: "weight" }, bar(ofNext), make("span", {}, percent(ofNext))));
      }
      return make("tr", {}, make("th", { scope: "row" }, label(layer)), ...cells);
    });
    byId("lens-token").replaceChildren(make("thead", {}, title), make("tbody", {}, ...body));
    showNorms();
  });
  onScroll(() => table, () => keepInSight(table.parentElement, head.children[view.token + 1], head.children[0].offsetWidth));
}

function showNorms() {
  const t = view.token, { norms } = reading, rows = [];
  const entries = [["residual_before", "stream at the start", 0]];
  for (let layer = 0; layer < model.num_layers; layer++) {
    entries.push(["attention_output", `+ attention ${layer}`, layer]);
    if (norms.mlp_output) entries.push(["mlp_output", `+ feed-forward ${layer}`, layer]);
    entries.push(["residual_after", `= stream after layer ${layer}`, layer]);
  }
  const length = ([name, , layer]) => norms[name][layer][t];
  const most = Math.max(...entries.map(length));
  for (const entry of entries) {
    const kind = entry[1][0] === "+" ? "plain" : "of-stream";
    rows.push(make("div", { class: "norm" }, make("span", { class: "label" }, entry[1]),
      bar(length(entry) / most, kind), make("span", { class: "value" }, number(length(entry), 2))));
  }
  byId("norms").replaceChildren(...rows);
}
