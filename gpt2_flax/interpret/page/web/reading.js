// One reading: a text, and every number that the model makes of it.
//
// Where the weights are in the page, the model reads any text here. Else the page has the
// numbers of the one text that it was made with, and `reading` never changes.

const live = data.steps !== null;
const AXES = {
  token_embeddings: "TD", positions: "TD", residual_before: "LTD", attention_norm: "LTD",
  query: "LHTK", key: "LHTK", value: "LHTK", rotated_query: "LHTK", rotated_key: "LHTK",
  scores: "LHTS", biased_scores: "LHTS", weights: "LHTS", head_output: "LHTK",
  attention_output: "LTD", residual_between: "LTD", mlp_norm: "LTD", mlp_hidden: "LTF",
  mlp_output: "LTD", residual_after: "LTD", final_norm: "TD",
};
const MOST_LENS_TOKENS = 5;

let reading = null;  // what the page shows
let uncut = null;  // the same text, read by the model as it is; `reading` where nothing is cut
let second = null;  // {taps, logits} of the second text, if there is one; nothing is cut in it

const decoded = new Map();  // weights by the place of their step
function weightsAt(place) {
  if (!decoded.has(place)) decoded.set(place, decodeTree(data.steps[place].weights));
  return decoded.get(place);
}

// All values of a text, by the names of Python's taps: taps.weights[layer][head][t][s].
// An edit {site, layer, head, change} puts change(rows) in the place of rows.
function trace(tokens, weights, edits = []) {
  const taps = {};
  const logits = gpt2(model, weights, tokens, (name, value, layer, head) => {
    for (const edit of edits) {
      if (edit.site === name && edit.layer === layer && edit.head === head) value = edit.change(value);
    }
    if (layer === undefined) taps[name] = value;
    else if (head === undefined) (taps[name] ??= [])[layer] = value;
    else ((taps[name] ??= [])[layer] ??= [])[head] = value;
    return value;
  });
  return { taps, logits };
}

function readLive(tokens, place, edits) {
  const weights = weightsAt(place);
  const { taps, logits } = trace(tokens, weights, edits);
  const own = tokens.every((id, t) => id === data.tokens[t]);  // of the text the page came with
  const following = own && tokens.length === data.tokens.length ? data.following[0] : undefined;
  return {
    tokens, following, taps, weights, logits, layers: model.num_layers,
    lens: readLens(taps, weights, logits, tokens, following),
    norms: readNorms(taps),
    truth: language ? language(tokens) : own ? storedTruth?.slice(0, tokens.length) ?? null : null,
    heads: data.steps[place].heads,
    next: (t) => ({ ...descending(logits[t]), others: () => -Infinity, numOthers: 0 }),
  };
}

function readStored() {
  const { arrays, next, lens, norms, num_layers: layers } = data.reading;
  const logits = decode(next.logits);
  return {
    tokens: data.tokens, following: data.following[0], taps: decodeTree(arrays), layers, norms,
    lens: lens.ids.map((row, layer) => row.map((ids, t) => ({
      ids, shares: lens.probabilities[layer][t], ofNext: lens.of_next[layer][t],
    }))),
    truth: storedTruth, heads: data.heads,
    next: (t) => ({
      ids: next.ids[t], logits: logits[t], numOthers: next.num_others,
      others: (temperature) =>
        (next.others ? next.others[t][data.temperatures.indexOf(temperature)] : -Infinity),
    }),
  };
}

// The logit lens: the stream before the first layer and after each, read as if it were the last.
function readLens(taps, weights, logits, tokens, following) {
  const streams = [taps.residual_before[0], ...taps.residual_after.slice(0, -1)];
  const read = streams.map((x_TD) => unembed(weights, layerNorm(model, weights.final_norm, x_TD)));
  return [...read, logits].map((logits_TV) => logits_TV.map((logits_V, t) => {
    const shares = softmax(logits_V), next = tokens[t + 1] ?? following;
    const ids = descending(logits_V).ids.slice(0, MOST_LENS_TOKENS);
    return { ids, shares: ids.map((id) => shares[id]), ofNext: shares[next] };
  }));
}

// How long whole vectors are: norms.mlp_output[layer][t].
function readNorms(taps) {
  const names = ["residual_before", "attention_output", "residual_between", "mlp_output", "residual_after"];
  const length = (x_D) => Math.sqrt(dot(x_D, x_D));
  return Object.fromEntries(names.filter((name) => taps[name])
    .map((name) => [name, taps[name].map((x_TD) => x_TD.map(length))]));
}

// Token ids from the likeliest on, with their logits.
function descending(logits_V) {
  const ids = Array.from(logits_V.keys()).sort((a, b) => logits_V[b] - logits_V[a]);
  return { ids, logits: ids.map((id) => logits_V[id]) };
}

const storedTruth = data.oracle && decode(data.oracle);
const numTokens = () => reading.tokens.length;
const nameAt = (place) => tokenName(reading.tokens[place]);
const nextId = (place) => reading.tokens[place + 1] ?? reading.following;
// A step's value, [T][...]: of the open layer and head, where it has such axes.
function tap(name, layer = view.layer, head = view.head) {
  const value = reading.taps[name];
  if (!value || AXES[name].startsWith("T")) return value;
  return AXES[name][1] === "H" ? value[layer][head] : value[layer];
}
