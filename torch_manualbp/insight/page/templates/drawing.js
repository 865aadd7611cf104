// ---- The drawing ------------------------------------------------------------------------------------------------------

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Where everything stands is in the data, the same as in the picture of insight.picture.
const { width, height, radius, roomy, labels: labelPlaces } = net.layout;
const labelled = Object.keys(labelPlaces).length > 0;
const place = (c, j) => net.layout.places[c][j];
const gap = Math.min(...net.columns.map((_, c) => (c ? place(c, 0)[0] - place(c - 1, 0)[0] : Infinity)));
const widest = Math.max(...net.columns.map((q, c) => (c ? q.n * col(c - 1).n : 0))); // weights between two columns
const parts = new Map(); // "n-2-1", "e-2-1-0" and "cost": the elements, by name

function draw() {
  const root = svg("svg", { width, height, style: `min-width: ${0.82 * width}px`, viewBox: `0 0 ${width} ${height}`, role: "group", class: roomy && widest <= 60 ? "roomy" : "crowded", "aria-label": `The network, ${net.columns.map((q) => q.n).join(" → ")} neurons. Arrow keys move, Enter opens the numbers of a neuron or a weight.` });
  const edges = root.appendChild(svg("g"));
  const labels = root.appendChild(svg("g", { "aria-hidden": "true", "pointer-events": "none" }));
  const neurons = root.appendChild(svg("g"));
  net.columns.forEach((q, c) => {
    const [x] = place(c, 0);
    const what = c === 0 ? ": x" : q.f ? `: ${q.f}` : ending(c) ? ": s" : "";
    root.append(svg("text", { class: "head", x, y: 20 }, gap < 75 && c ? String(c + 1) : `layer ${c + 1}${what}`));
    for (let j = 0; j < q.n; j++) drawNeuron(neurons, c, j);
  });
  const [x, y] = net.layout.cost;
  for (let j = 0; j < col(last).n; j++) {
    const [from, at] = place(last, j);
    edges.append(svg("line", { x1: from, y1: at, x2: x, y2: y, stroke: "var(--rule)", "stroke-width": roomy ? 2 : 1 }));
  }
  root.append(svg("text", { class: "head", x, y: 20 }, "cost"));
  drawCost(neurons, x, y);
  for (let c = 1; c <= last; c++) for (let j = 0; j < col(c).n; j++) for (let k = 0; k < col(c - 1).n; k++) drawEdge(edges, c, j, k);
  for (const [id, at] of Object.entries(labelPlaces)) drawLabel(labels, parts.get(`e-${id}`), at);
  root.append(tips);
  return root;
}

function interactive(group, id) {
  group.dataset.id = id;
  group.setAttribute("role", "button");
  group.setAttribute("tabindex", "-1");
  parts.set(id, { group, values: {} });
  return parts.get(id);
}

function drawNeuron(into, c, j) {
  const [x, y] = place(c, j);
  const group = into.appendChild(svg("g", { class: "neuron" }));
  const part = interactive(group, `n-${c}-${j}`);
  part.circle = group.appendChild(svg("circle", { cx: x, cy: y, r: radius }));
  if (!roomy) return;
  const letter = c === 0 ? "x" : ending(c) ? "s" : col(c).f ? "a" : "z";
  const name = group.appendChild(svg("text", { class: "name", x, y: y + 4 }, letter));
  if (one(c, j) !== null) name.append(svg("tspan", { "font-size": 11, dy: 4 }, String(j + 1)));
  if (c > 0 && !ending(c)) name.append(svg("tspan", { "font-size": 10, dy: one(c, j) === null ? -6 : -11 }, `(${c + 1})`));
  const lines = c === 0 ? [["a", "x"]] : [["z", ending(c) ? "s" : "z"], ...(col(c).f ? [["a", "a"]] : []), ["delta", "δ"]];
  lines.forEach(([what, sign], i) => {
    const line = group.appendChild(svg("text", { class: "value", x, y: y + radius + 15 + i * 15, "text-anchor": "middle" }));
    line.append(svg("tspan", { class: "letter" }, `${sign} `));
    part.values[what] = line.appendChild(svg("tspan"));
  });
}

function drawCost(into, x, y) {
  const group = into.appendChild(svg("g", { class: "neuron" }));
  const part = interactive(group, "cost");
  const r = roomy ? radius : 14;
  part.circle = group.appendChild(svg("circle", { cx: x, cy: y, r }));
  group.append(svg("text", { class: "name", x, y: y + 5 }, "C"));
  const line = group.appendChild(svg("text", { class: "value", x, y: y + r + 15, "text-anchor": "middle" }));
  part.values.C = line.appendChild(svg("tspan"));
  const target = group.appendChild(svg("text", { class: "value", x, y: y - r - 8, "text-anchor": "middle" }));
  part.values.y = target.appendChild(svg("tspan"));
}

function drawEdge(into, c, j, k) {
  const [x1, y1] = place(c - 1, k);
  const [x2, y2] = place(c, j);
  const length = Math.hypot(x2 - x1, y2 - y1);
  const [dx, dy] = [((x2 - x1) / length) * radius, ((y2 - y1) / length) * radius];
  const ends = { x1: x1 + dx, y1: y1 + dy, x2: x2 - dx, y2: y2 - dy };
  const group = into.appendChild(svg("g", { class: "edge" }));
  const part = interactive(group, `e-${c}-${j}-${k}`);
  group.append(svg("line", { ...ends, class: "hit" }));
  part.line = group.appendChild(svg("line", { ...ends, class: "line" }));
  part.ends = ends;
}

// The two numbers of a line.
function drawLabel(into, part, [x, y]) {
  const plate = into.appendChild(svg("rect", { class: "plate", y: y - 13, height: 27, rx: 4 }));
  const first = into.appendChild(svg("text", { class: "label", x, y: y - 2, "text-anchor": "middle" }));
  const second = into.appendChild(svg("text", { class: "label", x, y: y + 12, "text-anchor": "middle" }));
  part.values = { w: first, dw: second };
  part.plate = { plate, x };
}

// Where there is no room for all numbers, what is pointed at, has the focus or is chosen shows its own.
const tips = svg("g", { "aria-hidden": "true", "pointer-events": "none" });
const shownAtOnce = (id) => Object.keys(parts.get(id).values).length > 0;

function placeTips(...ids) {
  tips.replaceChildren();
  for (const id of new Set(ids)) if (id && !shownAtOnce(id)) tips.append(tip(id));
}

function tip(id) {
  const [kind, c, j, k] = split(id);
  const { ends } = parts.get(id);
  const lines = kind === "e" ? numbersOfWeight(c, j, k) : numbersOfNeuron(c, j);
  const letters = Math.max(...lines.map((line) => line.length));
  const [wide, high] = [letters * 6.8 + 12, lines.length * 15 + 8];
  const [x, y] = ends ? [(ends.x1 + ends.x2) / 2, (ends.y1 + ends.y2) / 2] : [place(c, j)[0], place(c, j)[1] - radius - 6 - high / 2];
  const left = Math.max(2, Math.min(width - wide - 2, x - wide / 2));
  const top = Math.max(26, Math.min(height - high - 2, y - high / 2));
  const group = svg("g", { class: "tip" }, svg("rect", { x: left, y: top, width: wide, height: high, rx: 4 }));
  lines.forEach((line, i) => group.append(svg("text", { x: left + wide / 2, y: top + 16 + 15 * i, "text-anchor": "middle" }, line)));
  return group;
}

// ---- What the drawing shows at a step ---------------------------------------------------------------------------------

const sign = (v) => (v > 0 ? "plus" : v < 0 ? "minus" : Number.isNaN(v) ? "nan" : "");
const weightNow = (c, j, k) => real(knows("next") && col(c).Wnext ? col(c).Wnext[j][k] : col(c).W[j][k]);
const gradientOf = (c, j, k) => (col(c).dW ? real(col(c).dW[j][k]) : null);

function scaleOf(values) {
  const finite = values.filter((v) => Number.isFinite(v)).map(Math.abs);
  const largest = finite.reduce((m, v) => Math.max(m, v), 0) || 1;
  return (v) => (Number.isFinite(v) ? Math.sqrt(Math.abs(v) / largest) : 1);
}

function refreshDrawing() {
  const byGradient = state.shows === "gradient";
  const of = byGradient ? gradientOf : weightNow;
  const values = (c) => Array.from({ length: col(c).n * col(c - 1).n }, (_, i) => of(c, Math.floor(i / col(c - 1).n), i % col(c - 1).n));
  const ofAll = scaleOf(net.columns.flatMap((_, c) => (c ? values(c) : [])));
  const thickest = roomy ? 5.5 : widest > 600 ? 2.2 : 3.2;
  const faintest = widest > 600 ? 0.02 : 0.12; // thousands of lines: only the strong ones are to be seen
  for (let c = 1; c <= last; c++) {
    const seen = byGradient ? knows(`dW${c}`) && col(c).dW : true;
    const size = roomy ? ofAll : scaleOf(values(c)); // in a large network by layer, or a small gradient is not to be seen
    for (let j = 0; j < col(c).n; j++) {
      for (let k = 0; k < col(c - 1).n; k++) {
        const { group, line, values, plate } = parts.get(`e-${c}-${j}-${k}`);
        const v = of(c, j, k);
        group.setAttribute("class", `edge ${seen ? sign(v) : "unknown"}`);
        line.setAttribute("stroke-width", seen ? (0.6 + thickest * size(v)).toFixed(2) : 1);
        line.setAttribute("stroke-opacity", roomy ? 1 : !seen ? 2 * faintest + 0.06 : (faintest + (1 - faintest) * size(v) ** (widest > 600 ? 3 : 2)).toFixed(2));
        if (values.w) {
          values.w.textContent = shown(weightNow(c, j, k), 4);
          values.w.setAttribute("class", known.next === state.step ? "label fresh" : "label");
          values.dw.textContent = knows(`dW${c}`) ? shown(gradientOf(c, j, k), 4) : "";
          values.dw.setAttribute("class", known[`dW${c}`] === state.step ? "label fresh" : "label");
          const letters = Math.max(values.w.textContent.length, values.dw.textContent.length);
          plate.plate.setAttribute("width", letters * 6.6);
          plate.plate.setAttribute("x", plate.x - letters * 3.3);
          values.dw.style.fill = gradientOf(c, j, k) < 0 ? "var(--negative)" : "var(--positive)";
        }
      }
    }
  }
  const back = state.step > known.C;
  for (let c = 0; c <= last; c++) {
    const what = back && c > 0 ? "delta" : "a";
    const rows = what === "delta" ? col(c).delta : given(c);
    const tint = scaleOf(rows[state.sample].map(real));
    for (let j = 0; j < col(c).n; j++) {
      const { group, circle, values } = parts.get(`n-${c}-${j}`);
      for (const [name, element] of Object.entries(values)) {
        const now = c === 0 || knows(name + c);
        element.parentNode.style.visibility = now ? "visible" : "hidden";
        element.textContent = now ? shown((name === "a" ? given(c) : col(c)[name])[state.sample][j], 4) : "";
        element.setAttribute("class", known[name + c] === state.step ? "fresh" : "");
      }
      const seen = c === 0 || knows(what + c);
      const v = real(rows[state.sample][j]);
      group.setAttribute("class", `neuron ${seen && !roomy ? sign(v) : ""}`);
      circle.style.setProperty("--size", `${Math.round(15 + 75 * tint(v))}%`);
    }
  }
  const cost = parts.get("cost");
  cost.group.setAttribute("class", "neuron");
  cost.values.C.textContent = knows("after") ? shown(net.cost.after, 4) : knows("C") ? shown(net.cost.value, 4) : "";
  cost.values.y.textContent = net.cost.y ? targetOf(net.cost.y[state.sample]) : "";
  const several = net.batch > 1;
  $("whose").textContent = several ? `Numbers at neurons are those of sample ${state.sample + 1} of ${net.batch}; gradients of weights are sums over all ${net.batch}.` : "";
  markChosen();
  placeTips(state.chosen);
  for (const id of parts.size <= 400 ? parts.keys() : [state.focus || state.chosen]) label(id);
}

// Classes count from 1, as the neurons do.
function targetOf(y) {
  if (net.cost.is_class) return `y: ${symbols.a(last, y[0]).text}`;
  return `y ${y.map((v) => shown(v, 4)).slice(0, 2).join(", ")}${y.length > 2 ? ", …" : ""}`;
}

// The chain of the chosen weight: its own edge, and those that its neuron acts through.
function markChosen() {
  for (const { group } of parts.values()) group.classList.remove("chosen", "onpath");
  document.querySelector(".drawing [aria-current]")?.removeAttribute("aria-current");
  const chosen = parts.get(state.chosen);
  chosen.group.classList.add("chosen");
  chosen.group.setAttribute("aria-current", "true");
  const [kind, c, j, k] = split(state.chosen);
  if (kind === "cost") return;
  if (kind === "e") for (const id of [`n-${c}-${j}`, `n-${c - 1}-${k}`]) parts.get(id).group.classList.add("onpath");
  if (c < last) for (let i = 0; i < col(c + 1).n; i++) parts.get(`e-${c + 1}-${i}-${j}`).group.classList.add("onpath");
  else parts.get("cost").group.classList.add("onpath");
}

const split = (id) => id.split("-").map((part, i) => (i ? Number(part) : part));

// The numbers of a weight or of a neuron that are known by now.
const say = (s, value, now) => (now ? `${s.text} = ${shown(value, 6)}` : null);
const numbersOfWeight = (c, j, k) => [say(symbols.w(c, j, k), weightNow(c, j, k), true), col(c).dW && say(partial(symbols.w(c, j, k)), col(c).dW[j][k], knows(`dW${c}`))].filter(Boolean);
function numbersOfNeuron(c, j) {
  const [i, q] = [state.sample, col(c)];
  if (c === 0) return [say(symbols.a(0, j), q.a[i][j], true)];
  return [say(symbols.z(c, j), q.z[i][j], knows(`z${c}`)), q.f && say(symbols.a(c, j), q.a[i][j], knows(`a${c}`)), say(symbols.delta(c, j), q.delta[i][j], knows(`delta${c}`))].filter(Boolean);
}

// What a screen reader says of a neuron or a weight, and the line below the drawing.
function described(id) {
  const [kind, c, j, k] = split(id);
  if (kind === "cost") return `The cost C${knows("C") ? ` = ${shown(net.cost.value, 6)}` : ""}`;
  if (kind === "e") return `Weight from ${symbols.a(c - 1, k).text} to ${symbols.z(c, j).text}: ${numbersOfWeight(c, j, k).join(", ")}`;
  if (c === 0) return `Input ${numbersOfNeuron(c, j)[0]}`;
  return [`Neuron ${j + 1} of layer ${c + 1}`, ...numbersOfNeuron(c, j)].join(", ");
}
const label = (id) => parts.get(id).group.setAttribute("aria-label", described(id));
