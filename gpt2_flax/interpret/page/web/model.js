// The model: what gpt2_flax/transformer.py and its parts compute, in plain JavaScript.
//
// Letters in names are axes, as in Python: T query position, S key position, L layers,
// H heads, K head_dim, D embed_dim, F mlp_dim, V vocab_size. A matrix x_TD is an array of
// T rows, each with D numbers; weights have the names and the shapes of the parameters.

// Tokens in, logits_TV out. `see(name, value, layer, head)` gets every step's value, and
// what it returns takes the value's place: so values are kept, and edited.
function gpt2(model, weights, tokens, see) {
  let x_TD = see("token_embeddings", embedTokens(model, weights, tokens));
  x_TD = add(x_TD, see("positions", positions(model, weights, tokens.length)));
  for (let layer = 0; layer < model.num_layers; layer++) {
    x_TD = block(model, weights[`blocks_${layer}`], layer, x_TD,
      (name, value, head) => see(name, value, layer, head));
  }
  x_TD = see("final_norm", layerNorm(model, weights.final_norm, x_TD));
  return unembed(weights, x_TD);
}

// Attention reads from other positions, the feed-forward works on each alone. Both add
// to the residual stream what they make of its normalised copy.
function block(model, weights, layer, x_TD, see) {
  x_TD = see("residual_before", x_TD);
  let normed_TD = see("attention_norm", layerNorm(model, weights.attention_norm, x_TD));
  const attended_TD = attention(model, weights.attention, layer, normed_TD, see);
  x_TD = see("residual_between", add(x_TD, see("attention_output", attended_TD)));
  if (model.feed_forward) {
    normed_TD = see("mlp_norm", layerNorm(model, weights.feed_forward_norm, x_TD));
    const thought_TD = feedForward(model, weights.feed_forward, normed_TD, see);
    x_TD = add(x_TD, see("mlp_output", thought_TD));
  }
  return see("residual_after", x_TD);
}

// Many heads: the same steps with weights of their own, concatenated and projected.
function attention(model, weights, layer, x_TD, see) {
  const heads_HTK = [];
  for (let head = 0; head < model.num_heads; head++) {
    heads_HTK.push(selfAttention(model, weights.heads, layer, head, x_TD,
      (name, value) => see(name, value, head)));
  }
  const concatenated_TD = x_TD.map((_, t) => heads_HTK.flatMap((out_TK) => [...out_TK[t]]));
  return linear(weights.output, concatenated_TD);
}

// One head: each token asks all earlier ones, and takes from those that answer.
function selfAttention(model, weights, layer, head, x_TD, see) {
  const project = (name) => see(name, linear(
    { kernel: weights[name].kernel[head], bias: weights[name].bias[head] }, x_TD));
  let [query_TK, key_SK, value_SK] = ["query", "key", "value"].map(project);
  if (model.positional_encoding === "rotary") {
    query_TK = see("rotated_query", rotate(query_TK));
    key_SK = see("rotated_key", rotate(key_SK));
  }
  const divisor = scoreDivisor(model, layer);
  let scores_TS = see("scores",
    query_TK.map((query) => key_SK.map((key) => dot(query, key) / divisor)));
  if (model.positional_encoding === "alibi") {
    const slope = alibiSlope(model.num_heads, head);
    scores_TS = see("biased_scores",
      scores_TS.map((row, t) => row.map((score, s) => score - slope * Math.abs(t - s))));
  }
  const weights_TS = see("weights",
    scores_TS.map((row, t) => softmax(row.map((score, s) => (sees(model, t, s) ? score : -Infinity)))));
  return see("head_output", weights_TS.map((row) => {
    const out_K = new Float64Array(model.head_dim);
    row.forEach((weight, s) => {
      for (let k = 0; weight && k < out_K.length; k++) out_K[k] += weight * value_SK[s][k];
    });
    return out_K;
  }));
}

const sees = (model, t, s) => !model.causal || s <= t;

// What a layer's dot products are divided by.
function scoreDivisor(model, layer) {
  return (model.scale_attention ? Math.sqrt(model.head_dim) : 1)
    * (model.scale_attention_by_layer ? layer + 1 : 1);
}

function feedForward(model, weights, x_TD, see) {
  const activate = ACTIVATIONS[model.activation];
  const hidden_TF = linear(weights.expand, x_TD).map((row) => row.map(activate));
  return linear(weights.contract, see("mlp_hidden", hidden_TF));
}

const ACTIVATIONS = {
  relu: (x) => Math.max(0, x),
  gelu: (x) => 0.5 * x * (1 + erf(x / Math.SQRT2)),
  gelu_tanh: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
};

// The error function by a series whose terms are all of one sign: Abramowitz & Stegun, 7.1.6.
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let term = x, total = x;
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(total); n++) {
    term *= (2 * x * x) / (2 * n + 1);
    total += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * total;
}

function embedTokens(model, weights, tokens) {
  const scale = model.positional_encoding === "sinusoidal" ? Math.sqrt(model.embed_dim) : 1;
  const { embedding: embedding_VD } = weights.token_embedding;
  return tokens.map((id) => Float64Array.from(embedding_VD[id], (x) => scale * x));
}

// A vector for each position; zeros where attention itself knows the positions.
function positions(model, weights, length) {
  const places = Array.from({ length }, (_, position) => position);
  switch (model.positional_encoding) {
    case "sinusoidal": return places.map((position) => wave(position, model.embed_dim));
    case "learned": {
      const { embedding: { embedding: table_TD } } = weights.positional_encoding;
      return places.map((position) => table_TD[position]);
    }
    default: return places.map(() => new Float64Array(model.embed_dim));
  }
}

// The angle that a pair of features has turned by at a position.
const angle = (position, pair, numFeatures) => position * 10000 ** ((-2 * pair) / numFeatures);

function wave(position, numFeatures) {
  return Float64Array.from({ length: numFeatures }, (_, i) =>
    (i % 2 ? Math.cos : Math.sin)(angle(position, Math.floor(i / 2), numFeatures)));
}

// Each pair of features turned by its position: scores then know the distance alone.
function rotate(x_TK) {
  return x_TK.map((x, position) => {
    const turned = new Float64Array(x.length);
    for (let i = 0; i < x.length; i += 2) {
      const by = angle(position, i / 2, x.length);
      turned[i] = x[i] * Math.cos(by) - x[i + 1] * Math.sin(by);
      turned[i + 1] = x[i] * Math.sin(by) + x[i + 1] * Math.cos(by);
    }
    return turned;
  });
}

// How much a head's score loses for each token of distance (Press et al., 2022, section 3).
function alibiSlope(numHeads, head) {
  const nearest = 2 ** Math.floor(Math.log2(numHeads));
  return head < nearest
    ? 2 ** ((-8 * (head + 1)) / nearest)
    : 2 ** ((-4 * (2 * (head - nearest) + 1)) / nearest);
}

function layerNorm(model, { scale, bias }, x_TD) {
  return x_TD.map((x_D) => {
    const mean = sum(x_D) / x_D.length;
    const variance = x_D.reduce((total, x) => total + (x - mean) ** 2, 0) / x_D.length;
    const spread = Math.sqrt(variance + model.layer_norm_epsilon);
    return x_D.map((x, d) => ((x - mean) / spread) * scale[d] + bias[d]);
  });
}

// How well each token's embedding fits: logits_TV.
function unembed(weights, x_TD) {
  const { embedding: embedding_VD } = weights.output_embedding ?? weights.token_embedding;
  return x_TD.map((x_D) => Float64Array.from(embedding_VD, (row_D) => dot(x_D, row_D)));
}

// y = x W + b, row by row.
function linear({ kernel: kernel_DF, bias: bias_F }, x_TD) {
  return x_TD.map((x_D) => {
    const y_F = Float64Array.from(bias_F);
    for (let d = 0; d < x_D.length; d++) {
      const x = x_D[d], row_F = kernel_DF[d];
      for (let f = 0; f < y_F.length; f++) y_F[f] += x * row_F[f];
    }
    return y_F;
  });
}

function dot(x, y) {
  let total = 0;
  for (let i = 0; i < x.length; i++) total += x[i] * y[i];
  return total;
}

const add = (x_TD, y_TD) => x_TD.map((x_D, t) => Float64Array.from(x_D, (x, d) => x + y_TD[t][d]));

// Shares that sum to 1; a score of -Infinity has none.
function softmax(scores) {
  const top = scores.reduce((a, b) => Math.max(a, b), -Infinity);
  const shares = scores.map((score) => Math.exp(score - top));
  const total = sum(shares);
  return shares.map((share) => share / total);
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
