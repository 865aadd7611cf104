// ---- What the page knows of the network, and when --------------------------------------------------------------------

const net = data.network;
const last = net.columns.length - 1;
const col = (c) => net.columns[c];
const given = (c) => col(c).a ?? col(c).z; // what a column hands on, by sample

// Layer c + 1 of the article is column c here; W⁽ᶜ⁾ leads to column c.
const ending = (c) => c === last && !col(c).f;
const one = (c, j) => (j === null || (ending(c) && col(c).n === 1) ? null : j + 1); // the article's s has no index
const symbols = {
  z: (c, j = null) => (ending(c) ? symbol("s", null, one(c, j)) : symbol("z", c + 1, j === null ? null : j + 1)),
  a: (c, j = null) => {
    if (c === 0) return symbol("x", null, j === null ? null : j + 1);
    return col(c).f ? symbol("a", c + 1, j === null ? null : j + 1) : symbols.z(c, j);
  },
  delta: (c, j = null) => symbol("δ", c + 1, one(c, j)),
  w: (c, j, k) => symbol("w", c, [j + 1, k + 1]),
  W: (c) => symbol("W", c),
  b: (c, j = null) => symbol("b", c, j === null ? null : j + 1),
};

// The steps of the slider; `known` says from which on a number may be seen.
const known = {};
const steps = [];
function step(phase, names, title, words, formulas, table) {
  for (const name of names) known[name] = steps.length;
  steps.push({ phase, title, words, formulas, table });
}
const knows = (name) => known[name] !== undefined && state.step >= known[name];

// Two costs are written out; of the others the panel has the formula of the rule.
function costFormula(s) {
  const [y, total] = [symbol("y"), "<munder><mo>∑</mo><mtext>all</mtext></munder>"];
  const mean = net.cost.n > 1 ? [`<mfrac><mn>1</mn><mn>${net.cost.n}</mn></mfrac>`] : [];
  const sum = net.cost.n > 1 || net.batch > 1 || col(last).n > 1 ? [...mean, total] : [];
  if (net.cost.columns.includes("(s − y)²")) return ["<mi>C</mi>", op("="), ...sum, op("("), s, op("−"), y, '<msup><mo>)</mo><mn>2</mn></msup>'];
  if (net.cost.is_class) return ["<mi>C</mi>", op("="), op("−"), ...mean, total, y, "<mi>log</mi>", op("⁡"), "<mi>p</mi>", op(","), "<mspace width='1em'/><mi>p</mi>", op("="), "<mtext>softmax</mtext>", op("("), s, op(")")];
  return ["<mi>C</mi>", op("="), "<mtext>cost</mtext>", op("("), s, op(","), y, op(")")];
}

function planSteps() {
  const { z, a, delta, W, b } = symbols;
  const weights = net.columns.map((_, c) => c).slice(1);
  const backward = net.cost.derivative.map(indexed).join(", ");
  step("network", ["x", "w"], "One step of training, number by number", `Going forward, the data become an output and this a cost C. Going back, the cost’s derivative becomes the gradient of every weight, layer by layer; then the weights take a step that is to make C smaller. Here is what it starts from: ${net.columns.map((q) => q.n).join(" → ")} neurons, with the data x and all weights. Press Next. (In formulas and tables a sample is a row.)`, [], { of: "units", c: 0, what: ["a"] });
  for (const c of weights) {
    const sums = [z(c), op("="), a(c - 1), transposed(bracketed(W(c))), ...(col(c).b ? [op("+"), b(c)] : [])];
    const bends = col(c).f ? [[a(c), op("="), col(c).elementwise ? "<mi>f</mi>" : `<mtext>${escaped(col(c).f)}</mtext>`, op("("), z(c), op(")")]] : [];
    const words = `Each neuron of layer ${c + 1} adds up what comes in, weight times input${col(c).b ? ", and its bias" : ""}${col(c).f ? `; then f, here ${escaped(col(c).f)}, bends it` : ""}.`;
    step("forward", [`z${c}`, `a${c}`], `Forward to layer ${c + 1}: ${z(c).text}${col(c).f ? ` and ${a(c).text}` : ""}`, words, [sums, ...bends], { of: "units", c, what: col(c).f ? ["z", "a"] : ["z"] });
  }
  step("cost", ["C"], "The cost", `How far the output is from the target y: ${escaped(net.cost.name)}, one number for all samples.`, [costFormula(a(last))], { of: "cost" });
  for (const c of [...weights].reverse()) {
    const top = c === last;
    const arriving = top ? [partial(a(c))] : [partial(a(c)), op("="), delta(c + 1), W(c + 1)];
    const start = top ? `The cost’s own derivative says how C answers to each output${backward ? `: ${backward}` : ""}.` : `A neuron acts on C through every neuron that it feeds: each δ of layer ${c + 2} comes back through its weight.`;
    if (col(c).f) {
      step("backward", [`da${c}`], `Back to layer ${c + 1}: ${partial(a(c)).text}`, start, [arriving], { of: "units", c, what: ["da"] });
      const through = col(c).elementwise
        ? [delta(c), op("="), partial(a(c)), op("⊙"), slope(z(c))]
        : [delta(c), op("="), partial(a(c)), symbol("J")];
      const words = col(c).elementwise ? `Through the activation: entry by entry times f′. For ${escaped(col(c).f)}, ${escaped(col(c).formula)}.` : `Through ${escaped(col(c).f)}, whose Jacobian J is not diagonal: every entry of a depends on every z.`;
      step("backward", [`delta${c}`], `The local gradient of layer ${c + 1}: ${delta(c).text}`, words, [through], { of: "units", c, what: ["delta"] });
    } else {
      step("backward", [`da${c}`, `delta${c}`], `${top ? "The local gradient of the output" : `Back to layer ${c + 1}`}: ${delta(c).text}`, start, [[delta(c), op("="), ...arriving]], { of: "units", c, what: ["delta"] });
    }
    const gradients = [[partial(W(c)), op("="), transposed(bracketed(delta(c))), a(c - 1)]];
    if (col(c).b) gradients.push([partial(b(c)), op("="), "<munder><mo>∑</mo><mtext>samples</mtext></munder>", delta(c)]);
    step("backward", [`dW${c}`], `The gradients of ${W(c).text}${col(c).b ? ` and ${b(c).text}` : ""}`, "A weight’s gradient is δ of the neuron that it leads to, times the activation that it comes from, added up over the samples.", gradients, { of: "weights", c, what: ["dW", "db"] });
  }
  const rule = net.optimizer.plain ? [symbol("w"), op("≔"), symbol("w"), op("−"), "<mi>ε</mi>", partial(symbol("w"))] : [symbol("w"), op("≔"), `<mtext>${escaped(net.optimizer.kind)}</mtext>`, op("("), symbol("w"), op(","), partial(symbol("w")), op(")")];
  step("update", ["next"], "The update", `Every weight and bias takes a step, made by ${escaped(net.optimizer.name)}. The new numbers:`, [rule], { of: "update" });
  step("update", ["after"], "The cost again", "The same data through the changed network.", [], { of: "after" });
}
