// What is selected: kept in the link, changed by every control, shown by every part.

const MOST_TOKENS = data.most_tokens;
const isWhole = (value, below) => Number.isInteger(value) && value >= 0 && value < below;
const numbered = {
  write: String,
  read: (text) => (text.trim() === "" ? NaN : Number(text)),
};
const listed = {
  write: (items) => items.join(","),
  read: (text) => text.split(",").filter(Boolean),
};
const tokenList = {
  write: (tokens) => tokens.join("."),
  read: (text) => text.split(".").map(numbered.read),
  allows: (tokens) => tokens.length >= 1 && tokens.length <= MOST_TOKENS
    && tokens.every((id) => isWhole(id, model.vocab_size)),
};

// For each field: how it is written in the link and read from it, what is allowed, and how
// the page begins. The first ones change what is read; the others say what is looked at.
const READ = {
  tokens: { ...tokenList, initial: data.tokens },
  other: { ...tokenList, allows: (tokens) => tokens === null || tokenList.allows(tokens), initial: null },
  step: {
    write: (place) => String(data.steps[place].step),
    read: (text) => data.steps.findIndex(({ step }) => String(step) === text),
    allows: (place) => isWhole(place, data.steps.length),
    initial: live ? data.steps.length - 1 : null,
  },
  cut: { ...listed, allows: (names) => names.every(isPart), initial: [] },
  patch: { ...listed, allows: (names) => names.every(isPlace), initial: [] },
};
const SEEN = {
  layer: { ...numbered, allows: (value) => isWhole(value, reading.layers) },
  head: { ...numbered, allows: (value) => isWhole(value, model.num_heads) },
  token: { ...numbered, allows: (value) => isWhole(value, numTokens()) },
  key: { ...numbered, allows: (value) => value === null || isWhole(value, numTokens()), initial: null },
  temperature: { ...numbered, allows: (value) => data.temperatures.includes(value), initial: 1 },
  top_k: { ...numbered, allows: (value) => isWhole(value, model.vocab_size + 1), initial: 0 },
  top_p: { ...numbered, allows: (value) => value > 0 && value <= 1, initial: 1 },
  seed: { ...numbered, allows: (value) => isWhole(value, 2 ** 31), initial: 0 },
};
const FIELDS = live ? { ...SEEN, ...READ } : SEEN;

const view = Object.fromEntries(
  Object.entries({ ...READ, ...SEEN }).map(([name, field]) => [name, field.initial]));
const parts = [];  // functions that show the view
const readingParts = [];  // functions that show the reading; they run before those
const onChange = (part) => parts.push(part);
const onReading = (part) => readingParts.push(part);
// What asks for the layout runs last, so that there is one layout; and only where its step is
// drawn at all, which the browser leaves out far from the screen.
const scrolls = [];
const onScroll = (element, part) => scrolls.push(() => {
  if (element().checkVisibility({ contentVisibilityAuto: true })) part();
});
document.addEventListener("contentvisibilityautostatechange", () => scrolls.forEach((part) => part()), true);

// The head that the model can do without least: the page opens with it.
function mostCostly() {
  let [layer, head] = [0, 0];
  const costs = reading.heads ? reading.heads.ablation : [];
  costs.slice(0, reading.layers).forEach((row, l) => row.forEach((cost, h) => {
    if (cost > costs[layer][head]) [layer, head] = [l, h];
  }));
  return { layer, head };
}

// A button that is drawn anew keeps the focus: the one at its place has it then.
function show() {
  const at = document.activeElement, group = at.closest("[id]:not(button)");
  const place = group ? [...group.querySelectorAll("button")].indexOf(at) : -1;
  for (const part of [...parts, ...scrolls]) part();
  if (place >= 0 && !at.isConnected) group.querySelectorAll("button")[place]?.focus({ preventScroll: true });
}

// Reads the text again, where it or the model has changed.
function readAgain(changed) {
  const has = (...names) => names.some((name) => changed.includes(name));
  if (has("other", "step")) second = view.other && trace(view.other, weightsAt(view.step));
  if (has("tokens", "step")) uncut = readLive(view.tokens, view.step, []);
  const edits = editsOf(view);
  reading = edits.length ? readLive(view.tokens, view.step, edits) : uncut;
  view.token = Math.min(view.token, numTokens() - 1);
  for (const part of readingParts) part();
}

// Changes what is selected; what is not allowed is left as it was.
function select(changes, intoLink = true) {
  const take = (fields) => Object.keys(fields).filter((name) => {
    if (!(name in changes) || !fields[name].allows(changes[name])) return false;
    const before = view[name];
    view[name] = changes[name];
    return String(before) !== String(view[name]);
  });
  const changed = live ? take(READ) : [];
  if (changed.length) readAgain(changed);
  take(SEEN);
  if (view.key !== null && view.key > lastKey()) view.key = null;
  show();
  if (!intoLink) return;
  try {
    history.replaceState(null, "", `#${link()}`);
  } catch {
    // a browser that allows only so many a minute: the next one will do
  }
}

function link() {
  return Object.entries(FIELDS)
    .filter(([name, { initial }]) => String(view[name]) !== String(initial))
    .map(([name, { write }]) => `${name}=${encodeURIComponent(write(view[name]))}`).join("&");
}

function readLink() {
  const words = new URLSearchParams(location.hash.slice(1));
  const changes = {};
  for (const [name, { read, initial, allows }] of Object.entries(FIELDS)) {
    const value = words.has(name) ? read(words.get(name)) : initial;
    if (value !== undefined) changes[name] = name in READ && !allows(value) ? initial : value;
  }
  select(changes);
}

// The last token that the selected one may look at.
const lastKey = () => (model.causal ? view.token : numTokens() - 1);

// The key that the selected token is compared with: chosen, or the most looked at.
function chosenKey() {
  if (view.key !== null) return view.key;
  const weights = tap("weights")[view.token];
  let best = 0;
  for (let s = 1; s <= lastKey(); s++) if (weights[s] > weights[best]) best = s;
  return best;
}

// A row of buttons of which one is chosen; arrow keys move. `labels` may change.
function picker(id, name, labels) {
  const holder = byId(id);
  let buttons = [], shown = null;
  holder.addEventListener("keydown", (event) => {
    const last = buttons.length - 1;
    const place = {
      ArrowLeft: view[name] - 1, ArrowUp: view[name] - 1,
      ArrowRight: view[name] + 1, ArrowDown: view[name] + 1, Home: 0, End: last,
    }[event.key];
    if (place === undefined) return;
    event.preventDefault();
    select({ [name]: Math.min(last, Math.max(0, place)) });
    buttons[view[name]].focus();
  });
  onChange(() => {
    const names = labels();
    if (shown !== names.join("\n")) {
      shown = names.join("\n");
      buttons = names.map((label, place) => button(label, () => select({ [name]: place }),
        { role: "radio", class: name === "token" ? "token" : "", title: `${name} ${place}` }));
      holder.replaceChildren(...buttons);
    }
    buttons.forEach((choice, place) => {
      const chosen = place === view[name];
      choice.setAttribute("aria-checked", chosen);
      choice.tabIndex = chosen ? 0 : -1;
    });
  });
  onScroll(() => holder, () => keepInSight(holder, buttons[view[name]]));
}

// Scrolls a row of things so that one of them is seen; `edge` is covered at its left.
function keepInSight(holder, { offsetLeft, offsetWidth }, edge = 0) {
  const left = offsetLeft - (getComputedStyle(holder).position === "static" ? holder.offsetLeft : 0);
  if (left < holder.scrollLeft + edge || left + offsetWidth > holder.scrollLeft + holder.clientWidth) {
    holder.scrollLeft = left - (holder.clientWidth + edge - offsetWidth) / 2;
  }
}

// A token that can be clicked, wherever it stands.
function tokenButton(place, extra = "", label = nameAt(place)) {
  return make("button", {
    type: "button", class: `token ${extra}`, "data-token": place,
    "aria-label": `token ${place}: ${nameAt(place)}`,
  }, label);
}

function startView() {
  const counted = (count) => Array.from({ length: count }, (_, i) => String(i));
  picker("tokens", "token", () => reading.tokens.map(tokenName));
  picker("layers", "layer", () => counted(reading.layers));
  picker("heads", "head", () => counted(model.num_heads));

  document.addEventListener("click", (event) => {
    const token = event.target.closest("[data-token]");
    if (token) select({ token: Number(token.dataset.token) });
  });
  window.addEventListener("hashchange", readLink);
  onChange(() => {
    for (const token of document.querySelectorAll("[data-token]")) {
      token.classList.toggle("selected", Number(token.dataset.token) === view.token);
    }
    for (const name of document.querySelectorAll(".chosen")) {
      name.textContent = `“${nameAt(view.token)}”`;
    }
    const where = `layer ${view.layer}, head ${view.head}`;
    for (const place of document.querySelectorAll(".where")) {
      place.textContent = where[0].toUpperCase() + where.slice(1);
    }
    byId("summary").textContent = `token ${view.token} “${nameAt(view.token)}”, ${where}`;
  });
}
