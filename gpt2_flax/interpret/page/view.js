// What is selected: kept in the link, changed by every control, shown by every part.

const view = { ...mostCostly(), token: numTokens - 1, key: null, temperature: 1 };
const limits = { layer: data.num_layers, head: sizes.H, token: numTokens, key: numTokens };
const parts = []; // functions that show the view

// The head that the model can do without least: the page opens with it.
function mostCostly() {
  let [layer, head] = [0, 0];
  const costs = data.heads ? data.heads.ablation : [];
  costs.slice(0, data.num_layers).forEach((row, l) => row.forEach((cost, h) => {
    if (cost > costs[layer][head]) [layer, head] = [l, h];
  }));
  return { layer, head };
}

const onChange = (part) => parts.push(part);

function show() {
  for (const part of parts) part();
}

// Changes what is selected; what is not allowed is left as it was.
function select(changes, intoLink = true) {
  for (const [name, value] of Object.entries(changes)) {
    if (name in limits && Number.isInteger(value) && value >= 0 && value < limits[name]) {
      view[name] = value;
    } else if (name === "key" && value === null) {
      view.key = null;
    } else if (name === "temperature" && data.temperatures.includes(value)) {
      view.temperature = value;
    }
  }
  if (view.key !== null && view.key > view.token) view.key = null;
  show();
  if (!intoLink) return;
  try {
    history.replaceState(null, "", `#${link()}`);
  } catch {
    // a browser that allows only so many a minute: the next one will do
  }
}

function link() {
  const words = ["layer", "head", "token"].map((name) => `${name}=${view[name]}`);
  if (view.key !== null) words.push(`key=${view.key}`);
  if (view.temperature !== 1) words.push(`temperature=${view.temperature}`);
  return words.join("&");
}

function readLink() {
  const words = new URLSearchParams(location.hash.slice(1));
  const changes = { key: null, temperature: 1 };
  for (const [name, value] of words) {
    if (name in view && value.trim() !== "") changes[name] = Number(value);
  }
  select(changes);
}

// The key that the selected token is compared with: chosen, or the most looked at.
function chosenKey() {
  if (view.key !== null) return view.key;
  const weights = arrays.weights(view.layer, view.head, view.token);
  let best = 0;
  for (let s = 1; s <= view.token; s++) if (weights[s] > weights[best]) best = s;
  return best;
}

// A row of buttons of which one is chosen; arrow keys move.
function picker(id, name, buttons) {
  const holder = document.getElementById(id);
  holder.append(...buttons);
  buttons.forEach((button, place) => {
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => select({ [name]: place }));
  });
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
    buttons.forEach((button, place) => {
      const chosen = place === view[name];
      button.setAttribute("aria-checked", chosen);
      button.tabIndex = chosen ? 0 : -1;
    });
    const button = buttons[view[name]];
    const left = button.offsetLeft - holder.offsetLeft;
    if (left < holder.scrollLeft || left + button.offsetWidth > holder.scrollLeft + holder.clientWidth) {
      holder.scrollLeft = left - holder.clientWidth / 2 + button.offsetWidth / 2;
    }
  });
}

function startView() {
  const numbered = (count) =>
    Array.from({ length: count }, (_, i) => make("button", { type: "button" }, String(i)));
  const tokens = data.tokens.map((_, place) =>
    make("button", { type: "button", class: "token", title: `token ${place}` }, nameAt(place)));
  picker("tokens", "token", tokens);
  picker("layers", "layer", numbered(data.num_layers));
  picker("heads", "head", numbered(sizes.H));

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
    document.getElementById("summary").textContent =
      `token ${view.token} “${nameAt(view.token)}”, ${where}`;
  });
}
