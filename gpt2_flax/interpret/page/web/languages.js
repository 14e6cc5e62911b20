// The toy languages' own next-token distributions, exact, as gpt2_flax/datasets computes them.
// Each takes the tokens of a text and gives a row of probabilities for each place; null from
// where on the language cannot have written the text.

const LANGUAGES = {
  markov({ order, rows, num_symbols: size }) {
    const tables = rows.map(decode);  // by how many symbols were seen
    return (tokens) => {
      let context = 0;
      return rowsOf(tokens, (t, row) => {
        if (t > 0 && tokens[t] === 0) return false;
        if (t > 0) context = (context * size + tokens[t] - 1) % size ** order;
        tables[Math.min(t, order)][context].forEach((p, symbol) => { row[symbol + 1] = p; });
        return true;
      });
    };
  },

  // Bayes' rule over the unknown period: see gpt2_flax/datasets/induction.py.
  induction({ periods, num_symbols: size }) {
    return (tokens) => {
      const symbols = tokens.slice(1);
      let possible = periods;
      return rowsOf(tokens, (n, row) => {
        possible = possible.filter((p) => n <= p || symbols[n - 1 - p] === symbols[n - 1]);
        if (!possible.length || (n > 0 && tokens[n] === 0)) return false;
        const fewest = Math.min(...possible.map((p) => Math.min(n, p)));
        const shares = possible.map((p) => size ** (fewest - Math.min(n, p)));
        const total = sum(shares);
        possible.forEach((p, i) => {
          if (p <= n) row[symbols[n - p]] += shares[i] / total;
          else for (let id = 1; id <= size; id++) row[id] += shares[i] / total / size;
        });
        return true;
      });
    };
  },

  // A probabilistic grammar: stacks of symbols still to be written, each with its probability
  // given the words so far. A number is a word, a text is a symbol that becomes others.
  grammar({ start, productions }) {
    const states = new Map();  // by the words so far

    // Word -> {mass, beliefs}: how likely it comes next, and the stacks that remain after it.
    function expand(beliefs) {
      const after = new Map(), todo = [...beliefs];
      while (todo.length) {
        const [stack, weight] = todo.pop();
        const top = stack.at(-1), rest = stack.slice(0, -1);
        if (typeof top === "number") {
          if (!after.has(top)) after.set(top, new Map());
          const stacks = after.get(top), key = rest.join("|");
          stacks.set(key, [rest, weight + (stacks.get(key)?.[1] ?? 0)]);
        } else {
          for (const [probability, symbols] of productions[top]) {
            todo.push([[...rest, ...symbols.toReversed()], weight * probability]);
          }
        }
      }
      return new Map([...after].map(([word, stacks]) => {
        const mass = sum([...stacks.values()].map(([, weight]) => weight));
        const beliefs = [...stacks.values()].map(([stack, weight]) => [stack, weight / mass]);
        return [word, { mass, beliefs }];
      }));
    }

    return (tokens) => {
      let state = null, soFar = "";
      return rowsOf(tokens, (t, row) => {
        const beliefs = t === 0 ? [[[start], 1]] : state.get(tokens[t])?.beliefs;
        if (!beliefs) return false;
        soFar += ` ${tokens[t]}`;
        if (!states.has(soFar)) states.set(soFar, expand(beliefs));
        state = states.get(soFar);
        for (const [word, { mass }] of state) row[word] = mass;
        return true;
      });
    };
  },
};

function rowsOf(tokens, fill) {
  let possible = tokens[0] === 0;  // the start token
  return tokens.map((_, t) => {
    const row = new Float64Array(model.vocab_size);
    possible = possible && fill(t, row);
    return possible ? row : null;
  });
}

const language = data.process && LANGUAGES[data.process.kind](data.process);
