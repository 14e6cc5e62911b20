// The text: typed, with words suggested; or changed token by token.

function startText() {
  for (const part of document.querySelectorAll("[data-live]")) part.hidden = !live;
  if (!live) return;
  textBox("prompt", "tokens", "prompt-says", "suggestions");
  if (tokenizer) textBox("other", "other", "other-says", "other-suggestions");
  byId("patching").hidden = !tokenizer;
  startTokenEditor();
}

// A box whose text is the tokens of a field; what is wrong is said, what could come is suggested.
function textBox(id, field, saysId, suggestionsId) {
  const box = byId(id), says = byId(saysId), suggestions = byId(suggestionsId);
  if (!tokenizer) {
    box.hidden = true;
    says.textContent = "This tokenizer's rules are not in the page: change the text token by token.";
    return;
  }
  const words = data.tokenizer.kind === "word";
  const beginning = (start) => (words && start ? vocabulary.filter(({ id, name }) =>
    name.startsWith(start) && name !== start && !startTokens.includes(id)).map(({ name }) => name) : []);
  // What the box says: the tokens up to a piece that is none, and that piece.
  const read = () => {
    const { tokens, unknown, isLast } = encode(box.value);
    const unfinished = isLast && !/\s$/.test(box.value) && beginning(unknown).length > 0;
    return { tokens: tokens.slice(0, MOST_TOKENS), numLeftOut: tokens.length - MOST_TOKENS, unknown, unfinished };
  };
  const take = () => {
    const { tokens, numLeftOut, unknown, unfinished } = read();
    suggest(unknown, unfinished);
    if (field === "other") select({ other: box.value.trim() === "" || !tokens.length ? null : tokens });
    else if (tokens.length) select({ tokens, token: changedPlace(tokens) });
    says.textContent = unknown !== undefined && !unfinished ? isNoToken(unknown)
      : numLeftOut > 0 ? `The page reads ${MOST_TOKENS} tokens at most; ${numLeftOut} are left out.`
        : tokens.length ? "" : "The text needs at least one token.";
  };
  const suggest = (unknown, unfinished) => {
    const last = /\S*$/.exec(box.value)[0], wrong = unknown !== undefined && !unfinished ? unknown : last;
    const names = !words ? [] : wrong === unknown && !unfinished ? near(unknown) : beginning(last);
    suggestions.replaceChildren(...names.slice(0, 10).map((name) => button(shownName(name), () => {
      const pieces = box.value.split(/(\s+)/);
      const at = unfinished || unknown === undefined ? pieces.length - 1 : pieces.indexOf(wrong);
      pieces[at] = name;
      box.value = pieces.join("") + (at === pieces.length - 1 ? " " : "");
      box.focus();
      take();
    }, { class: "token" })));
  };
  box.addEventListener("input", take);
  onReading(() => {  // a box that says the same is left as it was typed
    if (String(read().tokens) === String(view[field] ?? startTokens)) return;
    box.value = view[field] ? textOf(view[field]) : "";
    says.textContent = "";
    suggestions.replaceChildren();
  });
}

function isNoToken(name) {
  if (startTokens.some((id) => data.names[id] === name)) return `“${shownName(name)}” begins every text: it is not typed.`;
  const names = near(name).map((other) => `“${shownName(other)}”`);
  return `“${shownName(name)}” is not in the vocabulary of this model.${names.length ? ` Near: ${names.join(", ")}.` : ""}`;
}

// The last place at which a new text differs from the one before; its end, if none does.
function changedPlace(tokens) {
  let place = tokens.length - 1;
  while (place > 0 && tokens[place] === view.tokens[place - tokens.length + view.tokens.length]) place--;
  return place > 0 ? place : tokens.length - 1;
}

// The selected token: replaced, removed, or another one put beside it.
function startTokenEditor() {
  const name = byId("token-name"), says = byId("token-says");
  byId("vocabulary").append(...vocabulary.map((token) => make("option", { value: tokenName(token.id) })));
  const idByShownName = new Map(vocabulary.map(({ id }) => [tokenName(id), id]).reverse());
  const change = (deleted, offset, needsName) => () => {
    const id = idByShownName.get(name.value) ?? idByName.get(name.value);
    says.textContent = "";
    if (needsName && id === undefined) {
      says.textContent = name.value === "" ? "Type a token first." : isNoToken(name.value);
      return;
    }
    const at = view.token + offset;
    const tokens = view.tokens.toSpliced(at, deleted, ...(needsName ? [id] : []));
    if (tokens.length > MOST_TOKENS) says.textContent = `The page reads ${MOST_TOKENS} tokens at most.`;
    else if (!tokens.length) says.textContent = "The text needs at least one token.";
    else select({ tokens, token: Math.min(at, tokens.length - 1) });
  };
  byId("token-replace").addEventListener("click", change(1, 0, true));
  byId("token-before").addEventListener("click", change(0, 0, true));
  byId("token-after").addEventListener("click", change(0, 1, true));
  byId("token-remove").addEventListener("click", change(1, 0, false));
  name.addEventListener("keydown", (event) => {
    if (event.key === "Enter") byId("token-replace").click();
  });
}
