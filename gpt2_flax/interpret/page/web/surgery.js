// Cutting into the model: parts switched off, and places patched with what another text has.
//
// Names stand in the link. A part is "layer.head", "layer.attention" or "layer.mlp"; a place is
// "token.layer.site", with ".head" behind a head's.

const PATCHED = {
  residual_before: "the stream before the layer", head_output: "the open head's output",
  attention_output: "attention's output", mlp_output: "the feed-forward's output",
};

function isPart(name) {
  const [layer, part] = name.split(".");
  return isWhole(Number(layer), model.num_layers) && name === `${layer}.${part}`
    && (part === "attention" || (part === "mlp" && model.feed_forward) || isWhole(Number(part), model.num_heads));
}

function isPlace(name) {
  const [token, layer, site, head] = name.split(".");
  return isWhole(Number(token), MOST_TOKENS) && isWhole(Number(layer), model.num_layers)
    && Object.hasOwn(PATCHED, site) && (model.feed_forward || site !== "mlp_output")
    && (site === "head_output") === isWhole(Number(head), model.num_heads);
}

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
function editsOf({ cut, patch }) {
  const cuts = cut.map((name) => {
    const [layer, part] = name.split(".");
    const site = { attention: "attention_output", mlp: "mlp_output" }[part] ?? "head_output";
    return {
      site, layer: Number(layer), head: site === "head_output" ? Number(part) : undefined,
      change: (rows) => rows.map((row) => new Float64Array(row.length)),
    };
  });
  if (!second) return cuts;
  const patches = patch.map((name) => {
    const [token, layer, site, head] = name.split(".");
    const inLayer = second.taps[site][layer];
    const theirs = head === undefined ? inLayer : inLayer[head];
    return {
      site, layer: Number(layer), head: head === undefined ? undefined : Number(head),
      change: (rows) => rows.map((row, t) => (t === Number(token) ? theirs[t] ?? row : row)),
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
  const restore = () => select({ cut: [], patch: [] });
  byId("restore").addEventListener("click", restore);
  onChange(() => {
    const says = [...view.cut.map((name) => `${partName(name)} is off`),
      ...appliedPatches().map((name) => `patched: ${placeName(name)}`)];
    byId("cut-banner").hidden = says.length === 0;
    byId("cut-says").textContent = says.join("; ");
    document.body.classList.toggle("is-cut", says.length > 0);
    showEffect();
  });
  startPatching();
}

// The likeliest next tokens, as words.
function likeliest(logits_V, count = 6) {
  const shares = softmax(logits_V);
  return ["After it: ", ...descending(logits_V).ids.slice(0, count).flatMap((id) =>
    [make("b", { class: "word" }, tokenName(id)), ` ${percent(shares[id])} `])];
}

const appliedPatches = () => view.patch.filter((name) =>
  view.other && Number(name.split(".")[0]) < Math.min(numTokens(), view.other.length));

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
    byId("patches").replaceChildren(...view.patch.map((name) => make("li", {}, `${placeName(name)} `,
      button("take away", () => select({ patch: toggled(view.patch, name) }), { class: "plain" }))));
  });
}

// What the edits change at the selected token: the tokens whose probability moved most.
function showEffect() {
  const holder = byId("effect");
  holder.hidden = reading === uncut;
  if (holder.hidden) return;
  const t = view.token, before = softmax(uncut.logits[t]), after = softmax(reading.logits[t]);
  const ids = Array.from(before.keys())
    .sort((a, b) => Math.abs(after[b] - before[b]) - Math.abs(after[a] - before[a])).slice(0, 6);
  const distance = before.reduce((total, p, id) => total + (p > 0 ? p * Math.log(p / after[id]) : 0), 0);
  const most = Math.max(...ids.flatMap((id) => [before[id], after[id]]));
  holder.replaceChildren(
    make("p", { class: "readout" }, `What the cut changes after “${nameAt(t)}”: ${number(distance, 4)}`
      + " nats from the whole model to the cut one (KL divergence)."),
    ...ids.map((id) => nextRow(id, [["before", before[id]], ["", after[id]]], most)));
}
