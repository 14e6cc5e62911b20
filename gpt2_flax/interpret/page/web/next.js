// The next token: its distribution beside the language's own, and the text written on.

const MOST_SHOWN = 14;

function startNext() {
  slider("temperature", data.temperatures, (value) => value.toFixed(1));
  slider("top_k", Array.from({ length: Math.min(model.vocab_size, 100) + 1 }, (_, k) => k), (k) => (k ? String(k) : "all"));
  slider("top_p", Array.from({ length: 20 }, (_, i) => (i + 1) / 20), (p) => p.toFixed(2));
  if (live) startWriting();
  onChange(showNext);
}

// A slider over the values that a field may have.
function slider(name, values, says) {
  const element = byId(name);
  element.min = 0;
  element.max = values.length - 1;
  const choose = (intoLink) => select({ [name]: values[Number(element.value)] }, intoLink);
  element.addEventListener("input", () => choose(false));
  element.addEventListener("change", () => choose(true));
  onChange(() => {
    element.value = values.findLastIndex((value) => value <= view[name]);
    element.setAttribute("aria-valuetext", says(view[name]));
    byId(`${name}-value`).textContent = says(view[name]);
  });
}

function startWriting() {
  const one = byId("write-one"), run = byId("write-run"), seed = byId("seed");
  let timer = null;
  const full = () => numTokens() >= MOST_TOKENS;
  const stop = () => {
    clearInterval(timer);
    timer = null;
    run.textContent = "keep writing";
  };
  const write = () => {
    const last = numTokens() - 1;
    append(draw(nextTokens(reading, last, view), view.seed, last));
    if (full()) stop();
  };
  one.addEventListener("click", write);
  run.addEventListener("click", () => {
    if (timer !== null) return stop();
    run.textContent = "stop";
    timer = setInterval(write, 350);
  });
  byId("unwrite").addEventListener("click", () => {
    stop();
    select({ tokens: data.tokens, token: data.tokens.length - 1 });
  });
  byId("prompt").addEventListener("input", stop);  // who types writes alone
  seed.addEventListener("change", () => { seed.value = view.seed; });
  seed.addEventListener("input", () => select({ seed: seed.value === "" ? NaN : Number(seed.value) }));
  onChange(() => {
    if (document.activeElement !== seed) seed.value = view.seed;
    one.disabled = run.disabled = full();
    byId("write-says").textContent = full()
      ? `The text has ${MOST_TOKENS} tokens: there is no room for more.` : "";
    byId("written").replaceChildren(...reading.tokens.map((_, t) => tokenButton(t)));
    byId("soon").replaceChildren(...nextTokens(reading, numTokens() - 1, view).slice(0, 6).map(({ id, p }) =>
      button(`${tokenName(id)} ${percent(p)}`, () => append(id), { class: "plain", title: "write this token" })));
  });
}

// Puts a token at the end of the text, and looks at it.
function append(id) {
  if (numTokens() < MOST_TOKENS) select({ tokens: [...view.tokens, id], token: numTokens(), key: null });
}

// A token with bars: [kind, share] each, "" the model as it is, "before" uncut, "truth".
function nextRow(id, shares, most, attributes = {}) {
  const classes = { "": "p", before: "before", truth: "q" };
  const label = make(live ? "button" : "span", { class: "label", ...(live && { type: "button" }) }, tokenName(id));
  if (live) {
    label.title = "write this token";
    label.addEventListener("click", () => append(id));
  }
  return make("div", { class: "next-row", "data-id": id, ...attributes }, label,
    make("span", { class: "bars" }, ...shares.map(([kind, share]) => bar(share / most, kind))),
    make("span", { class: "values" }, ...shares.map(([kind, share]) =>
      make("span", { class: classes[kind] }, percent(share)))));
}

function showNext() {
  const t = view.token, rows = nextTokens(reading, t, view), came = nextId(t);
  const truth = reading.truth?.[t] ?? null, known = truth && sum(truth) > 0.5 ? truth : null;
  const whole = reading === uncut ? null
    : new Map(nextTokens(uncut, t, view).map(({ id, p }) => [id, p]));
  const wanted = new Set(rows.slice(0, MOST_SHOWN).map(({ id }) => id));
  if (known) {
    const likely = [...rows].sort((a, b) => known[b.id] - known[a.id]).slice(0, MOST_SHOWN);
    for (const { id } of likely) if (known[id] > 0) wanted.add(id);
  }
  const shown = rows.filter(({ id }) => wanted.has(id) || id === came);
  const sharesOf = ({ id, p }) => [["", p],
    ...(whole ? [["before", whole.get(id)]] : []), ...(known ? [["truth", known[id] ?? 0]] : [])];
  const most = Math.max(...shown.flatMap((row) => sharesOf(row).map(([, share]) => share)));
  const lines = shown.map((row) => nextRow(row.id, sharesOf(row), most,
    { class: `next-row${row.id === came ? " came" : ""}${row.kept ? "" : " left-out"}` }));
  const firstLeftOut = shown.findIndex(({ kept }) => !kept);
  const numKept = rows.filter(({ kept }) => kept).length;
  if (firstLeftOut > 0) {
    const share = sum(rows.filter(({ kept }) => kept).map(({ p }) => p));
    lines.splice(firstLeftOut, 0, make("p", { class: "cut-line" },
      `top-k and top-p cut here: ${numKept} token${numKept > 1 ? "s" : ""} stay, with ${percent(share)} of the probability`));
  }
  const others = rows.length - shown.length + reading.next(t).numOthers;
  if (others) {
    const rest = 1 - sum(shown.map(({ p }) => p));
    lines.push(make("p", { class: "caption" }, `${others} other tokens share ${percent(Math.max(0, rest))}.`));
  }
  const legend = make("p", { class: "legend" }, make("span", { class: "swatch" }), whole ? " the cut model " : " the model ");
  if (whole) legend.append(make("span", { class: "swatch before" }), " the whole model ");
  if (known) legend.append(make("span", { class: "swatch truth" }), " the language itself ");
  byId("next").replaceChildren(legend, ...lines);

  const p = came === undefined ? undefined : rows.find(({ id }) => id === came)?.p;
  byId("came").textContent = came === undefined
    ? `After “${nameAt(t)}”, the end of the text. What would come next?`
    : `After “${nameAt(t)}” came “${tokenName(came)}”`
      + (p === undefined ? "." : `, which the model held ${percent(p)} likely.`);
  byId("oracle-note").textContent = oracleNote(known, rows, t);
}

function oracleNote(truth, rows, t) {
  if (!language && !storedTruth) return "";
  if (!reading.truth) return "The language's own distribution is here for the first text only: this page cannot compute it.";
  if (!truth) return "The language cannot have begun like this, so it has no true probabilities here.";
  if (reading.next(t).numOthers) return "The true distribution is computed exactly from the process that writes the text.";
  const logs = logProbabilities(reading.next(t).logits.map((logit) => logit / view.temperature));
  const apart = sum(rows.map(({ id }, i) => (truth[id] > 0 ? truth[id] * (Math.log(truth[id]) - logs[i]) : 0)));
  return "The true distribution is computed exactly from the process that writes the text."
    + ` At this temperature the model is ${number(apart, 4)} nats away from it (KL divergence).`;
}
