// ---- The panel: the chain of a weight, and the sums of a neuron -------------------------------------------------------

// What is not known at this step is told when it will be.
const later = (name) => `<td class="from">known from <button type="button" class="goto" data-step="${known[name]}">step ${known[name] + 1}</button> on</td>`;
const value = (v, name) => (name === null || knows(name) ? cell(v) : later(name));
const row = (s, v, name, from = "", kind = "") => `<tr class="${kind}"><th class="words" scope="row"><math displaystyle="true">${s.math}</math></th>${value(v, name)}</tr>${from ? `<tr><td class="from" colspan="2">${from}</td></tr>` : ""}`;
const table = (caption, rows) => `<div class="scroll"><table>${caption ? `<caption>${caption}</caption>` : ""}<tbody>${rows}</tbody></table></div>`;
const link = (id, s) => `<button type="button" class="tick goto" data-id="${id}">${inline(s)}</button>`;

// A sum with its terms: [symbols, factors, product].
function terms(caption, list, total, name) {
  if (!knows(name)) return "";
  const times = (list) => (list.length > 1 ? `<span class="times">${list.map((v, i) => (i && v < 0 ? `(${shown(v)})` : shown(v))).join(" · ")} =</span>` : "");
  const rows = list.map(([s, numbers, product]) => `<tr class="term"><th class="words" scope="row">${inline(...s)}</th><td data-value="${product}">${times(numbers)}${shown(product)}</td></tr>`).join("");
  const all = list.length > 1 ? `<tr class="total"><th class="words" scope="row">${inline(op("∑"))}</th>${cell(total)}</tr>` : "";
  return `<div class="terms" tabindex="0" role="region" aria-label="${escaped(caption)}"><table><tbody>${rows}${all}</tbody></table></div>`;
}

// Are two sums the same up to rounding? `size` is the sum of what was added up, without signs. In half precision a
// thousand roundings would be as much as the number itself.
function verdict(ours, theirs, size) {
  const [a, b] = [real(ours), real(theirs)];
  const apart = a === b || (Number.isNaN(a) && Number.isNaN(b)) ? 0 : Math.abs(a - b);
  const same = apart === 0 || apart <= Math.min(1000 * net.eps, 0.1) * Math.max(size, Math.abs(b));
  const by = Number.isFinite(apart) ? `they differ by ${shown(apart, 2)}` : "not all that is multiplied is finite";
  const how = apart === 0 ? "the same, digit by digit" : `${same ? "the same up to rounding" : "another number"}: ${by}`;
  return `<span class="${same ? "agrees" : "differs"}" data-agrees="${same}">${same ? "✓ " : "✗ "}${how}</span>`;
}

// ∂C/∂a as a sum over the neurons that it feeds, or the cost's own derivative.
function upstream(c, j) {
  const i = state.sample;
  if (c === last) return "The cost’s own derivative, where the chain begins.";
  const list = Array.from({ length: col(c + 1).n }, (_, n) => {
    const [d, w] = [real(col(c + 1).delta[i][n]), real(col(c + 1).W[n][j])];
    return [[symbols.delta(c + 1, n), symbols.w(c + 1, n, j)], [d, w], d * w];
  });
  const text = inline(partial(symbols.a(c, j)), op("="), '<munder><mo>∑</mo><mi>i</mi></munder>', symbol("δ", c + 2, "i"), symbol("w", c + 1, [`i`, j + 1]));
  return `${text}: all the ways on from this neuron.${terms("The terms of this sum", list, sum(list.map((t) => t[2])), `da${c}`)}`;
}

// The factors of one sample: what arrives, what the activation lets through, and what came in.
function factors(c, j, k, i) {
  const q = col(c);
  const a = real(given(c - 1)[i][k]);
  const straight = !q.f || !q.elementwise;
  const list = straight ? [real(q.delta[i][j]), a] : [real(q.da[i][j]), real(q.slope[i][j]), a];
  return { list, product: list.reduce((p, v) => p * v, 1) };
}

const module = (q) => (q.path ? `the module <code>${escaped(q.path)}</code>` : "the model itself");

function edgePanel(c, j, k) {
  const q = col(c);
  const i = state.sample;
  const w = symbols.w(c, j, k);
  const name = `dW${c}`;
  const straight = !q.f || !q.elementwise;
  const slopeOf = slope(symbols.z(c, j));
  const arriving = straight ? (q.f ? symbols.delta(c, j) : partial(symbols.z(c, j))) : partial(symbols.a(c, j));
  const chain = [partial(w), op("="), arriving, op("·"), ...(straight ? [] : [slopeOf, op("·")]), symbols.a(c - 1, k)];
  const here = factors(c, j, k, i);
  const several = net.batch > 1;
  const arrives = straight && q.f ? `δ of this neuron, through ${escaped(q.f)}, whose Jacobian is not diagonal.` : upstream(c, j);
  const rows = [
    row(arriving, here.list[0], straight ? `delta${c}` : `da${c}`, arrives, "factor"),
    straight ? "" : row(slopeOf, here.list[1], `delta${c}`, `${escaped(q.f)}${knows(`z${c}`) ? ` at ${inline(symbols.z(c, j))} = ${shown(q.z[i][j])}` : ""}; ${escaped(q.formula)}`, "factor"),
    row(symbols.a(c - 1, k), here.list.at(-1), c === 1 ? "x" : `${col(c - 1).f ? "a" : "z"}${c - 1}`, c === 1 ? "The input itself." : "What came through this weight going forward.", "factor"),
    q.dW ? row(several ? { math: "<mtext>product</mtext>" } : partial(w), here.product, name, several ? "" : "The product.", "total product") : "",
  ].join("");
  const heading = `<h3 id="chain">${inline(w, op("="))} <span data-value="${real(q.W[j][k])}">${shown(q.W[j][k])}</span></h3>`;
  const joins = `<p class="small">The weight from ${link(`n-${c - 1}-${k}`, symbols.a(c - 1, k))} to ${link(`n-${c}-${j}`, symbols.z(c, j))}, in ${module(q)}.</p>`;
  if (!q.dW) return `${heading}${joins}<p>This weight is frozen: it asks for no gradient.</p>`;
  const share = several ? `<p class="small">Of ${net.batch} samples, the factors of sample ${i + 1}:</p>` : "";
  return `${heading}${joins}${display(...chain)}${share}${table("", rows)}${several ? overSamples(c, j, k) : ""}${check(total(c, j, k), q.autoW?.[j][k], real(q.size?.[j][k]) ?? sum(products(c, j, k).map(Math.abs)), name)}${updated(w, q.W[j][k], q.Wnext?.[j][k])}`;
}

// The gradient is a sum over the samples; those that are not in the page come as one term.
const products = (c, j, k) => Array.from({ length: net.samples }, (_, i) => factors(c, j, k, i).product);
const total = (c, j, k) => (net.samples < net.batch ? real(col(c).dW[j][k]) : sum(products(c, j, k)));

function overSamples(c, j, k) {
  const name = `dW${c}`;
  if (!knows(name)) return "";
  const each = products(c, j, k);
  const all = total(c, j, k);
  const others = net.batch - net.samples;
  const rows = each.map((product, i) => `<tr${i === state.sample ? ' aria-current="true"' : ""}><th class="words" scope="row">sample ${i + 1}</th>${cell(product)}</tr>`);
  if (others) rows.push(`<tr><th class="words" scope="row">the other ${others}</th>${cell(all - sum(each))}</tr>`);
  return `<div class="terms" tabindex="0" role="region" aria-label="The sum over the samples"><table><caption>The sum over the samples</caption><tbody>${rows.join("")}<tr class="total sum"><th class="words" scope="row">${inline(partial(symbols.w(c, j, k)))}</th>${cell(all)}</tr></tbody></table></div>`;
}

function check(ours, theirs, size, name) {
  if (!knows(name) || theirs === undefined || theirs === null) return "";
  return `${table("", `<tr class="autograd"><th class="words" scope="row">PyTorch’s autograd</th>${cell(theirs)}</tr>`)}<p class="small">${verdict(ours, theirs, size)}</p>`;
}

function updated(s, before, after) {
  if (after === undefined || !knows("next")) return "";
  return table(`The update, by ${escaped(net.optimizer.name)}`, `<tr class="before"><th class="words" scope="row">${inline(s)} before</th>${cell(before)}</tr><tr class="after"><th class="words" scope="row">${inline(s)} after</th>${cell(after)}</tr>`);
}

function neuronPanel(c, j) {
  const i = state.sample;
  const q = col(c);
  const several = net.batch > 1 ? ` <span class="small">(sample ${i + 1} of ${net.batch})</span>` : "";
  if (c === 0) {
    const back = q.da ? row(partial(symbols.a(0, j)), q.da[i][j], "dW1", upstreamOfInput(j)) : "";
    return `<h3>Input ${inline(symbols.a(0, j))}${several}</h3>${table("", row(symbols.a(0, j), q.a[i][j], null) + back)}`;
  }
  const list = Array.from({ length: col(c - 1).n }, (_, k) => {
    const [w, a] = [real(q.W[j][k]), real(given(c - 1)[i][k])];
    return [[symbols.w(c, j, k), symbols.a(c - 1, k)], [w, a], w * a];
  });
  if (q.b) list.push([[symbols.b(c, j)], [real(q.b[j])], real(q.b[j])]);
  const weighted = `${inline(symbols.z(c, j), op("="), "<munder><mo>∑</mo><mi>k</mi></munder>", symbol("w", c, [j + 1, "k"]), c === 1 ? symbol("x", null, "k") : symbol(col(c - 1).f ? "a" : "z", c, "k"), ...(q.b ? [op("+"), symbols.b(c, j)] : []))}${terms("The terms of z", list, sum(list.map((t) => t[2])), `z${c}`)}`;
  const rows = [row(symbols.z(c, j), q.z[i][j], `z${c}`, weighted)];
  if (q.f) {
    rows.push(row(symbols.a(c, j), q.a[i][j], `a${c}`, `f is ${escaped(q.f)}.`));
    rows.push(row(partial(symbols.a(c, j)), q.da[i][j], `da${c}`, upstream(c, j)));
    if (q.elementwise) rows.push(row(slope(symbols.z(c, j)), q.slope[i][j], `delta${c}`, escaped(q.formula)));
    rows.push(row(symbols.delta(c, j), q.delta[i][j], `delta${c}`, q.elementwise ? "The product of these two: the local gradient ∂C/∂z." : `The local gradient ∂C/∂z, through the Jacobian of ${escaped(q.f)}.`, "total"));
  } else {
    rows.push(row(symbols.delta(c, j), q.delta[i][j], `delta${c}`, upstream(c, j)));
  }
  const bias = q.db
    ? `${display(partial(symbols.b(c, j)), op("="), ...(net.batch > 1 ? ["<munder><mo>∑</mo><mtext>samples</mtext></munder>"] : []), symbols.delta(c, j))}${table("", row(symbols.b(c, j), q.b[j], null) + row(partial(symbols.b(c, j)), q.db[j], `dW${c}`))}${check(q.db[j], q.autob?.[j], real(q.sizeb?.[j]) ?? sum(q.delta.map((d) => Math.abs(real(d[j])))), `dW${c}`)}${updated(symbols.b(c, j), q.b[j], q.bnext?.[j])}`
    : "";
  return `<h3>Neuron ${j + 1} of layer ${c + 1}${several}</h3><p class="small">In ${module(q)}.</p>${table("", rows.join(""))}${bias}`;
}

function upstreamOfInput(j) {
  const list = Array.from({ length: col(1).n }, (_, n) => {
    const [d, w] = [real(col(1).delta[state.sample][n]), real(col(1).W[n][j])];
    return [[symbols.delta(1, n), symbols.w(1, n, j)], [d, w], d * w];
  });
  return `How C would answer to another input.${terms("The terms of this sum", list, sum(list.map((t) => t[2])), "dW1")}`;
}

// The formula and, of the costs that are known, the terms of one sample: a row for each output.
function costTerms() {
  const { formula, derivative, columns, rows, n } = net.cost;
  const line = (text) => `<p class="rule">${indexed(text)}</p>`;
  const formulas = [...formula, ...(knows(`da${last}`) ? derivative : [])].map(line).join("");
  const seen = rows.length ? columns.filter((_, at) => at < columns.length - 1 || knows(`da${last}`)) : [];
  if (!seen.length) return formulas;
  if (!knows("C")) return formulas;
  const head = seen.map((name) => `<th scope="col">${escaped(name)}</th>`).join("");
  const body = rows[state.sample].map((values, j) => `<tr class="cost-term"><th class="words" scope="row">${inline(symbols.a(last, j))}</th>${seen.map((_, at) => cell(values[at], 6)).join("")}</tr>`).join("");
  const of = net.batch > 1 ? `Sample ${state.sample + 1} of ${net.batch}` : "The terms";
  const divided = n > 1 ? `<p class="small">C is the sum of all of these, divided by n = ${n}; so is ∂C/∂s.</p>` : "";
  return `${formulas}<div class="terms" tabindex="0" role="region" aria-label="The terms of the cost"><table><caption>${of}</caption><thead><tr><td></td>${head}</tr></thead><tbody>${body}</tbody></table></div>${divided}`;
}

function costPanel() {
  const i = state.sample;
  const outputs = Array.from({ length: col(last).n }, (_, j) => row(partial(symbols.a(last, j)), col(last).da[i][j], `da${last}`)).join("");
  const after = knows("after") ? row({ math: "<mrow><mi>C</mi><mtext> after the update</mtext></mrow>" }, net.cost.after, "after") : "";
  return `<h3>The cost ${inline("<mi>C</mi>")}</h3><p class="small">${escaped(net.cost.name)} of the output and the target.</p>${costTerms()}${table("", row({ math: "<mi>C</mi>" }, net.cost.value, "C") + after)}${table(`How it answers to each output${net.batch > 1 ? `, sample ${i + 1}` : ""}`, outputs)}`;
}

function panelOf(id) {
  const [kind, c, j, k] = split(id);
  return kind === "cost" ? costPanel() : kind === "e" ? edgePanel(c, j, k) : neuronPanel(c, j);
}
