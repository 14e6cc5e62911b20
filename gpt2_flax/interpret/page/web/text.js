// The text: typed, with words suggested; or changed token by token.

function startText() {
  for (const part of document.querySelectorAll("[data-live]")) part.hidden = !live;
  if (!live) return;
  textBox("prompt", "tokens", "prompt-says", "suggestions");
  textBox("other", "other", "other-says", "other-suggestions");
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
  const take = () => {
    const { tokens, unknown } = encode(box.value);
    const known = tokens.includes(undefined) ? tokens.slice(0, tokens.indexOf(undefined)) : tokens;
    const shown = known.slice(0, MOST_TOKENS);
    const unfinished = unknown !== undefined && endsWith(unknown) && beginning(unknown).length > 0;
    suggest(unfinished ? undefined : unknown);
    if (field === "tokens" && shown.length) select({ tokens: shown, token: changedPlace(shown) });
    if (field === "other") select({ other: shown.length ? shown : null });
    if (unknown !== undefined && !unfinished) {
      const names = near(unknown).map((name) => `“${name}”`);
      says.textContent = `“${unknown}” is not in the vocabulary of this model.`
        + (names.length ? ` Near: ${names.join(", ")}.` : "");
    } else if (known.length > MOST_TOKENS) {
      says.textContent = `The page reads ${MOST_TOKENS} tokens at most; ${known.length - MOST_TOKENS} are left out.`;
    } else {
      says.textContent = shown.length ? "" : "The text needs at least one token.";
    }
  };
  const endsWith = (word) => box.value.endsWith(word);
  const words = data.tokenizer.kind === "word";
  const beginning = (start) => (words && start ? vocabulary.filter(({ id, name }) =>
    name.startsWith(start) && name !== start && !startTokens.includes(id)).map(({ name }) => name) : []);
  const suggest = (unknown) => {
    const wrong = unknown ?? /\S*$/.exec(box.value)[0];
    const names = !words ? [] : unknown === undefined ? beginning(wrong) : near(unknown);
    suggestions.replaceChildren(...names.slice(0, 10).map((name) => button(name, () => {
      const pieces = box.value.split(/(\s+)/);
      const at = pieces.lastIndexOf(wrong);
      pieces[at] = name;
      box.value = pieces.join("") + (at === pieces.length - 1 ? " " : "");
      box.focus();
      take();
    }, { class: "token" })));
  };
  box.addEventListener("input", take);
  onReading(() => {
    if (document.activeElement === box) return;
    box.value = view[field] ? textOf(view[field]) : "";
    says.textContent = "";
    suggestions.replaceChildren();
  });
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
      says.textContent = name.value === "" ? "Type a token first."
        : `“${name.value}” is not in the vocabulary of this model. Near: ${near(name.value).join(", ") || "nothing"}.`;
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
