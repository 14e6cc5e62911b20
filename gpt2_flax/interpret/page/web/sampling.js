// The next token: what may be drawn at a temperature, with top-k and top-p, and a draw.

// From the likeliest on: {id, p, kept}, p of all tokens, as generation.sample_token cuts them.
function nextTokens(from, t, { temperature, top_k: topK, top_p: topP }) {
  const { ids, logits, others } = from.next(t);
  const scaled = Array.from(logits, (logit) => logit / temperature);
  const top = scaled[0], rest = Math.exp(others(temperature) - top);
  const shares = scaled.map((logit) => Math.exp(logit - top));
  const total = sum(shares) + rest;
  const least = topK ? shares[Math.min(topK, shares.length) - 1] : 0;  // ties stay
  const inTopK = shares.map((share) => share >= least);
  const totalInTopK = topK ? sum(shares.filter((_, i) => inTopK[i])) : total;
  let before = 0, leastInTopP = Infinity;
  shares.forEach((share) => {
    if (before / totalInTopK < topP) leastInTopP = share;
    before += share;
  });
  return ids.map((id, i) => ({
    id, p: shares[i] / total, kept: inTopK[i] && (topP >= 1 || shares[i] >= leastInTopP),
  }));
}

// One of the kept, by chance: the same for the same seed and place.
function draw(tokens, seed, place) {
  const kept = tokens.filter((token) => token.kept);
  let left = random(seed, place) * sum(kept.map((token) => token.p));
  return (kept.find((token) => (left -= token.p) < 0) ?? kept.at(-1)).id;
}

// A number in [0, 1) for a seed and a place, mixed by the last steps of MurmurHash3 (Appleby).
function random(seed, place) {
  let x = (seed + Math.imul(place + 1, 0x9e3779b9)) | 0;
  x = Math.imul(x ^ (x >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return ((x ^ (x >>> 16)) >>> 0) / 2 ** 32;
}
