// Cutting into the model: parts switched off, and places patched with what another text has.
//
// Names stand in the link. A part is "layer.head", "layer.attention" or "layer.mlp"; a place is
// "token.layer.site", with ".head" behind a head's.

const PATCHED = {
  residual_before: "the stream before the layer", head_output: "the open head's output",
  attention_output: "attention's output", mlp_output: "the feed-forward's output",
};

const isIndex = (text, below) => /^(0|[1-9]\d*)$/.test(text) && Number(text) < below;

function isPart(name) {
  const [layer, part, ...rest] = name.split(".");
  return isIndex(layer, model.num_layers) && !rest.length
    && (part === "attention" || (part === "mlp" && model.feed_forward) || isIndex(part, model.num_heads));
}

function isPlace(name) {
  const [token, layer, site, head, ...rest] = name.split(".");
  return isIndex(token, MOST_TOKENS) && isIndex(layer, model.num_layers) && !rest.length
    && Object.hasOwn(PATCHED, site) && (model.feed_forward || site !== "mlp_output")
    && (site === "head_output" ? isIndex(head, model.num_heads) : head === undefined);
}

// The patches whose token is in both texts.
const appliedPatches = ({ patch, tokens, other }) => patch.filter((name) =>
  other && Number(name.split(".")[0]) < Math.min(tokens.length, other.length));

function partName(name) {
  const [layer, part] = name.split(".");
  return { attention: `attention of layer ${layer}`, mlp: `feed-forward of layer ${layer}` }[part]
    ?? `layer ${layer}, head ${part}`;
}

function placeName(name) {
  const [token, layer, site, head] = name.split(".");
  const what = site === "head_output" ? `the output of head ${head}` : PATCHED[site];
  return `${what}, layer ${layer}, at token ${token}`;
}

// What `trace` is to change on the way.
function editsOf(choices) {
  const cuts = choices.cut.map((name) => {
    const [layer, part] = name.split(".");
    const site = { attention: "attention_output", mlp: "mlp_output" }[part] ?? "head_output";
    return {
      site, layer: Number(layer), head: site === "head_output" ? Number(part) : undefined,
      change: (rows) => rows.map((row) => new Float64Array(row.length)),
    };
  });
  const patches = appliedPatches(choices).map((name) => {
    const [token, layer, site, head] = name.split(".");
    const inLayer = second.taps[site][layer];
    const theirs = head === undefined ? inLayer : inLayer[head];
    return {
      site, layer: Number(layer), head: head === undefined ? undefined : Number(head),
      change: (rows) => rows.map((row, t) => (t === Number(token) ? theirs[t] : row)),
    };
  });
  return [...patches, ...cuts];
}

const toggled = (items, item) =>
  items.includes(item) ? items.filter((other) => other !== item) : [...items, item];

// A switch for a part; name() may follow what is selected.
function cutSwitch(name, label) {
  const element = button("", () => select({ cut: toggled(view.cut, name()) }), { class: "cut" });
  onChange(() => {
    const off = view.cut.includes(name());
    element.setAttribute("aria-pressed", off);
    element.textContent = label(off);
    element.title = `${partName(name())}: ${off ? "cut, click to restore" : "click to cut"}`;
  });
  return element;
}

function startSurgery() {
  const rows = [];
  for (let layer = 0; layer < model.num_layers; layer++) {
    const switches = Array.from({ length: model.num_heads }, (_, head) =>
      cutSwitch(() => `${layer}.${head}`, () => `head ${head}`));
    switches.unshift(cutSwitch(() => `${layer}.attention`, () => "attention"));
    if (model.feed_forward) switches.push(cutSwitch(() => `${layer}.mlp`, () => "feed-forward"));
    rows.push(make("div", { class: "switches", role: "group", "aria-label": `layer ${layer}` },
      make("span", { class: "label" }, `layer ${layer}`), ...switches));
  }
  byId("parts").append(...rows);
  byId("cut-here").append(
    cutSwitch(() => `${view.layer}.${view.head}`, (off) => (off ? "restore this head" : "cut this head")));
  for (const holder of document.querySelectorAll("[data-cut]")) {
    const part = holder.dataset.cut, what = { attention: "attention", mlp: "feed-forward" }[part];
    holder.append(cutSwitch(() => `${view.layer}.${part}`,
      (off) => `${off ? "restore" : "cut"} the ${what} of layer ${view.layer}`));
  }
  const restore = () => {
    select({ cut: [], patch: [] });
    byId("parts").querySelector("button").focus({ preventScroll: true });  // this one is gone
  };
  byId("restore").addEventListener("click", restore);
  onChange(() => {
    const says = [...view.cut.map((name) => `${partName(name)} is off`),
      ...appliedPatches(view).map((name) => `patched: ${placeName(name)}`)];
    byId("cut-banner").hidden = says.length === 0;
    // a band of many names would hide a phone's screen
    byId("cut-says").textContent = says.length > 3 ? `${says.length} changes` : says.join("; ");
    byId("cut-says").title = says.join("; ");
    document.body.classList.toggle("is-cut", says.length > 0);
    showEffect();
  });
  startPatching();
}

function logProbabilities(logits_V) {
  const top = Math.max(...logits_V), total = sum(logits_V.map((logit) => Math.exp(logit - top)));
  return logits_V.map((logit) => logit - top - Math.log(total));
}

// The likeliest next tokens, as words.
function likeliest(logits_V, count = 6) {
  const shares = softmax(logits_V);
  return ["After it: ", ...descending(logits_V).ids.slice(0, count).flatMap((id) =>
    [make("b", { class: "word" }, tokenName(id)), ` ${percent(shares[id])} `])];
}

function startPatching() {
  const choice = byId("patch-site");
  for (const [site, name] of Object.entries(PATCHED)) {
    if (site !== "mlp_output" || model.feed_forward) choice.append(make("option", { value: site }, name));
  }
  const place = () => {
    const name = `${view.token}.${view.layer}.${choice.value}`;
    return choice.value === "head_output" ? `${name}.${view.head}` : name;
  };
  const act = byId("patch");
  act.addEventListener("click", () => select({ patch: toggled(view.patch, place()) }));
  const update = () => {
    const theirs = view.other?.[view.token];
    act.disabled = theirs === undefined;
    act.textContent = view.patch.includes(place()) ? "take the patch away" : "patch";
    byId("patch-place").textContent = theirs === undefined
      ? "The second text has no token at the selected place."
      : `At token ${view.token}, “${nameAt(view.token)}” here and “${tokenName(theirs)}” there, in layer ${view.layer}:`;
  };
  choice.addEventListener("change", update);
  onChange(() => {
    update();
    byId("other-soon").replaceChildren(...(second ? likeliest(second.logits.at(-1)) : []));
    const applied = appliedPatches(view);
    byId("patches").replaceChildren(...view.patch.map((name) => make("li", {},
      `${placeName(name)}${applied.includes(name) ? "" : " (these texts have no such token)"} `,
      button("take away", () => select({ patch: toggled(view.patch, name) }), { class: "plain" }))));
  });
}

// What the edits change at the selected token: the tokens whose probability moved most.
function showEffect() {
  const holder = byId("effect");
  holder.hidden = reading === uncut;
  if (holder.hidden) return;
  const t = view.token, [whole, changed] = [uncut, reading].map(({ logits }) => logProbabilities(logits[t]));
  const before = whole.map(Math.exp), after = changed.map(Math.exp);
  const ids = Array.from(before.keys())
    .sort((a, b) => Math.abs(after[b] - before[b]) - Math.abs(after[a] - before[a])).slice(0, 6);
  const distance = sum(before.map((p, id) => p * (whole[id] - changed[id])));
  const most = Math.max(...ids.flatMap((id) => [before[id], after[id]]));
  holder.replaceChildren(
    make("p", { class: "readout" }, `What this changes after “${nameAt(t)}”: ${number(distance, 4)}`
      + " nats from the whole model to the changed one (KL divergence)."),
    ...ids.map((id) => nextRow(id, [["before", before[id]], ["", after[id]]], most)));
}
