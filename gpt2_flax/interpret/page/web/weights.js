// What only the weights can show: norms step by step, the matrices, and one product of each.

// A norm's own steps, for [data-norm=NAME]: of the stream that it reads.
function startNorms() {
  for (const holder of document.querySelectorAll("[data-norm]")) {
    const { norm: name, of: source } = holder.dataset;
    if (!reading.taps[name]) continue;
    const result = make("p", { class: "readout" });
    holder.append(result);
    const strips = ["stream", "− mean, ÷ spread", "× scale", "+ bias", "= normalised"].map((label) => {
      const row = make("div", {});
      holder.append(row);
      return vector(row, label);
    });
    onChange(() => {
      const layerWeights = reading.weights[`blocks_${view.layer}`];
      const { scale, bias } = { attention_norm: layerWeights.attention_norm,
        mlp_norm: layerWeights.feed_forward_norm, final_norm: reading.weights.final_norm }[name];
      const x_D = source === "last" ? tap("residual_after", reading.layers - 1)[view.token] : tap(source)[view.token];
      const mean = sum(x_D) / x_D.length;
      const spread = Math.sqrt(sum(Array.from(x_D, (x) => (x - mean) ** 2)) / x_D.length + model.layer_norm_epsilon);
      result.textContent = `Of the ${x_D.length} numbers of “${nameAt(view.token)}” the mean is ${number(mean)}`
        + ` and the spread ${number(spread)}: the root of their variance`
        + ` + ${model.layer_norm_epsilon}. The scale and the bias were trained.`;
      [x_D, x_D.map((x) => (x - mean) / spread), scale, bias, tap(name)[view.token]]
        .forEach((values, i) => strips[i](values));
    });
  }
}

// A matrix of weights, and how one number of its product comes about: x · column + bias.
//   parts(): {x_D, kernel_DF, bias_F, made}: what is multiplied, by what, and what it gives.
function matrixProduct(holder, { title, left, made }, parts) {
  let feature = 0;
  const map = make("div", {});
  const choice = make("input", { type: "number", min: 0, "aria-label": `feature of the ${made}`, value: 0 });
  const result = make("p", { class: "readout" });
  const mapTitle = make("figcaption", {}, title, " ", make("span", {}));
  holder.append(make("figure", { class: "kernel" }, mapTitle, map));
  const draw = matrix(map, title, (_, column) => {
    feature = column;
    show();
  }, () => [null, feature]);
  holder.append(make("h3", {}, `One number of the ${made} of `, make("span", { class: "chosen" }), ": number ", choice));
  const drawProduct = productStrips(holder, [left, "× column", "= products"]);
  holder.append(result);
  choice.addEventListener("input", () => {
    if (choice.value !== "") feature = Number(choice.value);
    show();
  });
  onChange(() => {
    const { x_D, kernel_DF, bias_F, made: made_F } = parts();
    feature = Math.max(0, Math.min(Math.floor(feature) || 0, bias_F.length - 1));
    choice.max = bias_F.length - 1;
    if (document.activeElement !== choice) choice.value = feature;
    mapTitle.lastChild.textContent = `[${kernel_DF.length}, ${bias_F.length}]`;
    draw(kernel_DF, largestOf(kernel_DF));
    const column = kernel_DF.map((row) => row[feature]);
    const total = drawProduct(x_D, column);
    result.textContent = `The products add up to ${number(total)}; + bias ${number(bias_F[feature])}`
      + ` it is ${number(made_F[feature])}.`;
  });
}

function startMatrices() {
  const heads = () => reading.weights[`blocks_${view.layer}`].attention.heads;
  for (const name of ["query", "key", "value"]) {
    matrixProduct(byId(`kernel-${name}`), { title: `the matrix of the ${name}`, left: "normalised", made: name }, () => ({
      x_D: tap("attention_norm")[view.token], kernel_DF: heads()[name].kernel[view.head],
      bias_F: heads()[name].bias[view.head], made: tap(name)[view.token],
    }));
  }
  matrixProduct(byId("kernel-output"), { title: "the output matrix", left: "concatenated", made: "attention output" }, () => {
    const { kernel, bias } = reading.weights[`blocks_${view.layer}`].attention.output;
    const x_D = reading.taps.head_output[view.layer].flatMap((out_TK) => [...out_TK[view.token]]);
    return { x_D, kernel_DF: kernel, bias_F: bias, made: tap("attention_output")[view.token] };
  });
}

// Rotary positions: a query and a key before and after, and the first pair by numbers.
function startRotation() {
  const holder = byId("step-rotation");
  holder.hidden = model.positional_encoding !== "rotary";
  if (holder.hidden) return;
  const strips = ["query", "rotated_query", "key", "rotated_key"].map((name) => {
    const row = make("div", {});
    byId("rotation").append(row);
    return [name, vector(row, name.replace("rotated_", "turned "))];
  });
  const result = make("p", { class: "readout" });
  byId("rotation").append(result);
  onChange(() => {
    for (const [name, draw] of strips) draw(tap(name)[view.token]);
    const [before, after] = [tap("query")[view.token], tap("rotated_query")[view.token]];
    const pair = (x) => `(${number(x[0])}, ${number(x[1])})`;
    result.textContent = `At place ${view.token} the first pair of the query turns by ${number(angle(view.token, 0, before.length), 0)}`
      + ` radians: ${pair(before)} becomes ${pair(after)}. The last pair turns by`
      + ` ${number(angle(view.token, before.length / 2 - 1, before.length), 4)}.`;
  });
}

// The features of the feed-forward that fire most at a token, and what the open one says.
let openFeature = null;

function startFeatures() {
  if (!model.feed_forward) return;
  const list = byId("features");
  onChange(() => {
    const hidden = tap("mlp_hidden");
    const order = Array.from(hidden[view.token].keys())
      .sort((a, b) => hidden[view.token][b] - hidden[view.token][a]).slice(0, 8);
    const shown = openFeature ?? order[0];
    const most = Math.max(1e-9, hidden[view.token][order[0]]);
    list.replaceChildren(...order.map((feature) => {
      const row = button(`feature ${feature}`, () => {
        openFeature = feature;
        show();
      }, { class: "feature", "aria-pressed": feature === shown });
      row.append(bar(hidden[view.token][feature] / most), make("span", { class: "value" }, number(hidden[view.token][feature])));
      return row;
    }));
    showFeature(shown, hidden);
  });
}

// Where in the text it fires, and which tokens it makes likelier: what it writes, compared
// with their embeddings.
function showFeature(feature, hidden) {
  const most = Math.max(1e-9, ...hidden.map((row) => row[feature]));
  const text = reading.tokens.map((_, t) => {
    const token = tokenButton(t, "cell");
    tint(token, hidden[t][feature] / most);
    token.title = number(hidden[t][feature]);
    return token;
  });
  const written = reading.weights[`blocks_${view.layer}`].feed_forward.contract.kernel[feature];
  const fits = unembed(reading.weights, [written])[0];
  const { ids } = descending(fits);
  const words = (some) => some.flatMap((id) => [make("b", { class: "word" }, tokenName(id)), " "]);
  byId("feature").replaceChildren(
    make("p", {}, `Feature ${feature} of layer ${view.layer} in this text: the deeper the colour, the more it fires.`),
    make("div", { class: "attended" }, ...text),
    make("p", {}, "Where it fires, it writes towards ", ...words(ids.slice(0, 6)),
      "and away from ", ...words(ids.slice(-4).reverse())),
  );
}
