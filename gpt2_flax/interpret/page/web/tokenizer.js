// Text to tokens and back, for tokenizers that need no training; and words that are near.

const vocabulary = Object.entries(data.names).map(([id, name]) => ({ id: Number(id), name }));
const idByName = new Map(vocabulary.map(({ id, name }) => [name, id]).reverse());  // the first wins
const bySpaces = (text) => text.split(/\s+/).filter(Boolean).map((name) => ({ name, id: idByName.get(name) }));
const shownNames = (tokens) => tokens.map((id) => data.names[id]);

// For each kind of tokenizer: a text's pieces {name, id}, an unknown one's id undefined; and
// the text of tokens.
const KINDS = {
  word: { pieces: bySpaces, text: (tokens) => shownNames(tokens).join(" ") },
  number: { pieces: bySpaces, text: (tokens) => shownNames(tokens).join(" ") },
  char: {
    pieces: (text) => Array.from(text, (name) => ({ name, id: idByName.get(name) })),
    text: (tokens) => shownNames(tokens).join(""),
  },
  byte: {
    pieces: (text) => Array.from(new TextEncoder().encode(text), (id) => ({ name: `${id}`, id })),
    text: (tokens) => new TextDecoder().decode(Uint8Array.from(tokens)),
  },
};
const tokenizer = live ? KINDS[data.tokenizer.kind] : undefined;  // none for byte pairs
const startTokens = live && data.tokenizer.start_id !== null ? [data.tokenizer.start_id] : [];

// The tokens up to the first piece that is none; that piece, if there is one, and whether it
// is the last of all. The start token is none of a text's pieces.
function encode(text) {
  const pieces = tokenizer.pieces(text);
  const at = pieces.findIndex(({ id }) => id === undefined || startTokens.includes(id));
  const known = at < 0 ? pieces : pieces.slice(0, at);
  return {
    tokens: [...startTokens, ...known.map(({ id }) => id)],
    unknown: pieces[at]?.name, isLast: at === pieces.length - 1,
  };
}

// The text of tokens, as it is typed.
const textOf = (tokens) =>
  tokenizer.text(startTokens.every((id, i) => tokens[i] === id) ? tokens.slice(startTokens.length) : tokens);

// The words most like one that is not known: by letters to change, case counting half.
function near(word, count = 4) {
  const distance = ({ name }) => 0.5 * (editDistance(word, name)
    + editDistance(word.toLowerCase(), name.toLowerCase()));
  return vocabulary.filter(({ id }) => !startTokens.includes(id))
    .map((token) => ({ ...token, distance: distance(token) }))
    .filter((token) => token.distance <= Math.max(1, word.length / 2))
    .sort((a, b) => a.distance - b.distance).slice(0, count).map(({ name }) => name);
}

// Letters to insert, remove or replace: Levenshtein (1966).
function editDistance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] !== b[j - 1]));
    }
    row = next;
  }
  return row[b.length];
}
