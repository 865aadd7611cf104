// ---- The drawing ------------------------------------------------------------------------------------------------------

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const most = Math.max(...net.columns.map((q) => q.n));
const widest = Math.max(...net.columns.map((q, c) => (c ? q.n * col(c - 1).n : 0))); // weights between two columns
const roomy = most <= 6; // neurons with their numbers
const labelled = roomy && widest <= 8; // and weights with theirs
const sizes = roomy
  ? { radius: 23, down: 106, across: labelled ? 184 : Math.max(108, Math.min(184, 552 / last)), top: 34, side: 48 }
  : { radius: Math.max(2.6, Math.min(13, 190 / most)), down: Math.max(6.5, Math.min(44, 500 / most)), across: Math.max(90, Math.min(190, 740 / (last + 1))), top: 52, side: 40 };
const height = sizes.top + most * sizes.down + (roomy ? 14 : 12);
const width = 2 * sizes.side + sizes.across * last + (roomy ? 150 : 110);
const place = (c, j) => [sizes.side + c * sizes.across, sizes.top + (height - sizes.top - (roomy ? 30 : 0)) / 2 + (j - (col(c).n - 1) / 2) * sizes.down];
const parts = new Map(); // "n-2-1", "e-2-1-0" and "cost": the elements, by name

function draw() {
  const root = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "group", class: roomy && widest <= 60 ? "roomy" : "crowded", "aria-label": `The network, ${net.columns.map((q) => q.n).join(" → ")} neurons. Arrow keys move, Enter opens the numbers of a neuron or a weight.` });
  const edges = root.appendChild(svg("g"));
  const labels = root.appendChild(svg("g", { "aria-hidden": "true", "pointer-events": "none" }));
  const neurons = root.appendChild(svg("g"));
  const taken = [];
  net.columns.forEach((q, c) => {
    const [x] = place(c, 0);
    const what = c === 0 ? ": x" : q.f ? `: ${q.f}` : ending(c) ? ": s" : "";
    root.append(svg("text", { class: "head", x, y: 20 }, sizes.across < 75 && c ? String(c + 1) : `layer ${c + 1}${what}`));
    for (let j = 0; j < q.n; j++) taken.push(drawNeuron(neurons, c, j));
  });
  const [x, y] = [sizes.side + last * sizes.across + (roomy ? 125 : 85), place(last, 0)[1] + ((col(last).n - 1) / 2) * sizes.down];
  for (let j = 0; j < col(last).n; j++) {
    const [from, at] = place(last, j);
    edges.append(svg("line", { x1: from, y1: at, x2: x, y2: y, stroke: "var(--rule)", "stroke-width": roomy ? 2 : 1 }));
  }
  root.append(svg("text", { class: "head", x, y: 20 }, "cost"));
  drawCost(neurons, x, y);
  for (let c = 1; c <= last; c++) for (let j = 0; j < col(c).n; j++) for (let k = 0; k < col(c - 1).n; k++) drawEdge(edges, c, j, k);
  if (labelled) placeLabels(labels, taken);
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
  part.circle = group.appendChild(svg("circle", { cx: x, cy: y, r: sizes.radius }));
  if (!roomy) return null;
  const letter = c === 0 ? "x" : ending(c) ? "s" : col(c).f ? "a" : "z";
  const name = group.appendChild(svg("text", { class: "name", x, y: y + 4 }, letter));
  if (one(c, j) !== null) name.append(svg("tspan", { "font-size": 11, dy: 4 }, String(j + 1)));
  if (c > 0 && !ending(c)) name.append(svg("tspan", { "font-size": 10, dy: one(c, j) === null ? -6 : -11 }, `(${c + 1})`));
  const lines = c === 0 ? [["a", "x"]] : [["z", ending(c) ? "s" : "z"], ...(col(c).f ? [["a", "a"]] : []), ["delta", "δ"]];
  lines.forEach(([what, sign], i) => {
    const line = group.appendChild(svg("text", { class: "value", x, y: y + sizes.radius + 15 + i * 15, "text-anchor": "middle" }));
    line.append(svg("tspan", { class: "letter" }, `${sign} `));
    part.values[what] = line.appendChild(svg("tspan"));
  });
  return { x: x - 40, y: y - sizes.radius, w: 80, h: 2 * sizes.radius + 4 + lines.length * 15 };
}

function drawCost(into, x, y) {
  const group = into.appendChild(svg("g", { class: "neuron" }));
  const part = interactive(group, "cost");
  const r = roomy ? sizes.radius : 14;
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
  const [dx, dy] = [((x2 - x1) / length) * sizes.radius, ((y2 - y1) / length) * sizes.radius];
  const ends = { x1: x1 + dx, y1: y1 + dy, x2: x2 - dx, y2: y2 - dy };
  const group = into.appendChild(svg("g", { class: "edge" }));
  const part = interactive(group, `e-${c}-${j}-${k}`);
  group.append(svg("line", { ...ends, class: "hit" }));
  part.line = group.appendChild(svg("line", { ...ends, class: "line" }));
  part.ends = ends;
}

// Each label stands where it meets the fewest other things, as a hand would place it.
function placeLabels(into, taken) {
  const boxes = taken.filter(Boolean);
  const edges = [...parts].filter(([id]) => id.startsWith("e-"));
  const along = (e, t) => [e.x1 + (e.x2 - e.x1) * t, e.y1 + (e.y2 - e.y1) * t];
  const meets = (a, b) => Math.max(0, Math.min(a.x + a.w, b.x + b.w) - Math.max(a.x, b.x)) * Math.max(0, Math.min(a.y + a.h, b.y + b.h) - Math.max(a.y, b.y));
  for (const [, part] of edges) {
    let best = null;
    for (let t = 0.14; t <= 0.87; t += 0.03) {
      const [x, y] = along(part.ends, t);
      const box = { x: x - 25, y: y - 15, w: 50, h: 29 };
      let cost = Math.abs(t - 0.42) * 12 + sum(boxes.map((other) => meets(box, other)));
      for (const [, other] of edges) {
        if (other === part) continue;
        for (let u = 0; u <= 1; u += 0.05) {
          const [px, py] = along(other.ends, u);
          if (px > box.x + 3 && px < box.x + box.w - 3 && py > box.y + 3 && py < box.y + box.h - 3) cost += 9;
        }
      }
      if (best === null || cost < best.cost) best = { cost, box, x, y };
    }
    boxes.push(best.box);
    const plate = into.appendChild(svg("rect", { class: "plate", y: best.y - 13, height: 27, rx: 4 }));
    const first = into.appendChild(svg("text", { class: "label", x: best.x, y: best.y - 2, "text-anchor": "middle" }));
    const second = into.appendChild(svg("text", { class: "label", x: best.x, y: best.y + 12, "text-anchor": "middle" }));
    part.values = { w: first, dw: second };
    part.plate = { plate, x: best.x };
  }
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
  cost.values.y.textContent = net.cost.y ? `y ${net.cost.y[state.sample].map((v) => shown(v, 4)).slice(0, 2).join(", ")}${net.cost.y[state.sample].length > 2 ? ", …" : ""}` : "";
  markChosen();
  for (const id of parts.size <= 400 ? parts.keys() : [state.focus || state.chosen]) label(id);
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

// What a screen reader says of a neuron or a weight, and the line below the drawing: only what is known by now.
function described(id) {
  const [kind, c, j, k] = split(id);
  if (kind === "cost") return `The cost C${knows("C") ? ` = ${shown(net.cost.value, 6)}` : ""}`;
  const say = (s, value, now) => (now ? `${s.text} = ${shown(value, 6)}` : null);
  const i = state.sample;
  const said =
    kind === "e"
      ? [`Weight from ${symbols.a(c - 1, k).text} to ${symbols.z(c, j).text}: ${symbols.w(c, j, k).text} = ${shown(weightNow(c, j, k), 6)}`, col(c).dW && say(partial(symbols.w(c, j, k)), col(c).dW[j][k], knows(`dW${c}`))]
      : c === 0
        ? [`Input ${symbols.a(0, j).text} = ${shown(col(0).a[i][j], 6)}`]
        : [`Neuron ${j + 1} of layer ${c + 1}`, say(symbols.z(c, j), col(c).z[i][j], knows(`z${c}`)), col(c).f && say(symbols.a(c, j), col(c).a[i][j], knows(`a${c}`)), say(symbols.delta(c, j), col(c).delta[i][j], knows(`delta${c}`))];
  return said.filter(Boolean).join(", ");
}
const label = (id) => parts.get(id).group.setAttribute("aria-label", described(id));
