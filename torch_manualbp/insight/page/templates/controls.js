// ---- What the reader does ----------------------------------------------------------------------------------------------

const state = { step: 0, sample: 0, chosen: "", weight: "", byHand: {}, focus: "", shows: "weight" };
const MOST_LISTED = 100;
const PHASES = ["network", "forward", "cost", "backward", "update"];

// The numbers that a step brings, each beside its symbol.
function vectors({ table: t }) {
  const i = state.sample;
  const entry = (what, s, ...values) => `<div data-of="${what}"><dt>${inline(s)}</dt>${values.map((v) => `<dd data-value="${real(v)}">${shown(v)}</dd>`).join("")}</div>`;
  const list = (entries, kind = "") => `<div class="vectors" tabindex="0" role="region" aria-label="The numbers of this step"><dl class="${kind}">${entries.join("")}</dl></div>`;
  if (t.of === "units") {
    const letter = { z: symbols.z, a: symbols.a, da: (c, j) => partial(symbols.a(c, j)), delta: symbols.delta };
    const values = (what) => (what === "a" ? given(t.c) : col(t.c)[what])[i];
    return list(t.what.flatMap((what) => values(what).map((v, j) => entry(what, letter[what](t.c, j), v))));
  }
  if (t.of === "weights") {
    const { dW, db } = col(t.c);
    if (!dW) return "<p>This layer is frozen: nothing is to be learnt here.</p>";
    const weights = dW.flatMap((row, j) => row.map((v, k) => [j, k, v]));
    const few = weights.length > MOST_LISTED ? [...weights].sort((p, q) => Math.abs(q[2]) - Math.abs(p[2])).slice(0, MOST_LISTED) : weights;
    const entries = few.map(([j, k, v]) => entry("dW", partial(symbols.w(t.c, j, k)), v));
    if (few.length === weights.length && db) entries.push(...db.map((v, j) => entry("db", partial(symbols.b(t.c, j)), v)));
    return (few.length < weights.length ? `<p class="small">The largest ${MOST_LISTED} of ${weights.length}; all are in the tables below.</p>` : "") + list(entries);
  }
  if (t.of === "update") return updates(entry, list);
  const before = entry("C", { math: "<mi>C</mi>" }, net.cost.value);
  if (t.of === "cost") return list([before]);
  const change = real(net.cost.after) - real(net.cost.value);
  const outcome = change < 0 ? "It went down." : change > 0 ? "It went up: the step was too long." : Number.isNaN(change) ? "" : "It did not change.";
  return `${list([entry("C", { math: "<mrow><mi>C</mi><mtext> before</mtext></mrow>" }, net.cost.value), entry("after", { math: "<mrow><mi>C</mi><mtext> after</mtext></mrow>" }, net.cost.after)])}<p class="small">${outcome}</p>`;
}

function updates(entry, list) {
  const all = [];
  for (let c = 1; c <= last; c++) {
    const { W, Wnext, b, bnext } = col(c);
    if (Wnext) W.forEach((row, j) => row.forEach((v, k) => all.push([() => symbols.w(c, j, k), v, Wnext[j][k]])));
    if (bnext) b.forEach((v, j) => all.push([() => symbols.b(c, j), v, bnext[j]]));
  }
  const change = ([, before, after]) => Math.abs(real(after) - real(before));
  const few = all.length > MOST_LISTED ? [...all].sort((p, q) => change(q) - change(p)).slice(0, MOST_LISTED) : all;
  const words = few.length < all.length ? `<p class="small">The ${MOST_LISTED} that move furthest, of ${all.length}; all are in the tables below.</p>` : "";
  return words + list(few.map(([s, before, after]) => entry("update", s(), before, after)), "pairs");
}

function refresh(announces = false) {
  const s = steps[state.step];
  const slider = $("slider");
  slider.value = state.step;
  slider.setAttribute("aria-valuetext", `${state.step + 1} of ${steps.length}, ${s.phase}: ${s.title}`);
  $("previous").disabled = state.step === 0;
  $("next").disabled = state.step === steps.length - 1;
  for (const button of $("phases").children) button.removeAttribute("aria-current");
  $("phases").querySelector(`[data-phase="${s.phase}"]`).setAttribute("aria-current", "step");
  $("count").textContent = `Step ${state.step + 1} of ${steps.length} · ${s.phase}`;
  $("step-title").textContent = s.title;
  $("step-words").innerHTML = s.words;
  $("step-formulas").innerHTML = s.formulas.map((f) => display(...f)).join("");
  $("step-numbers").innerHTML = vectors(s);
  refreshDrawing();
  refreshPanel();
  if (announces) {
    const values = [...$("step-numbers").querySelectorAll("dd")].slice(0, 4).map((number) => number.textContent);
    const heading = document.activeElement === slider ? "" : `Step ${state.step + 1} of ${steps.length}, ${s.phase}. ${s.title}. `; // the slider says that itself
    $("live").textContent = heading + values.join(", ");
  }
}

function refreshPanel() {
  $("panel").innerHTML = panelOf(state.chosen);
  $("readout").textContent = described(state.chosen);
  const [kind, c, j, k] = split(state.chosen);
  if (kind === "e") fillChoice(c, j, k);
}

// Where the drawing is wider than its box, what the step is about moves into view.
function scrollToStep() {
  const { c, of } = steps[state.step].table;
  const x = (column) => place(column, 0)[0];
  const at = { units: () => x(c), weights: () => (x(c - 1) + x(c)) / 2, cost: () => net.layout.cost[0], after: () => net.layout.cost[0] }[of];
  if (!at) return;
  const shrunk = $("drawing").firstElementChild.getBoundingClientRect().width / width;
  $("drawing").scrollLeft = at() * shrunk - $("drawing").clientWidth / 2;
}

function goTo(step) {
  const before = steps[state.step].phase;
  state.step = Math.max(0, Math.min(steps.length - 1, Number(step)));
  const now = steps[state.step].phase;
  // Going forward the weights matter, going back their gradients; a choice by hand holds until the phase changes.
  if (now !== before) show(now === "backward" ? "gradient" : "weight");
  chooseForStep();
  refresh(true);
  scrollToStep();
}

// The weight that is shown is one of the layer that the step is about: the last that was chosen there by hand, or else
// the article's w₂₂. At the cost it is the cost.
function chooseForStep() {
  const { c, of } = steps[state.step].table;
  if (of === "cost" || of === "after") return take("cost");
  const layer = of === "update" ? split(state.weight)[1] : Math.max(c, 1);
  const [kind, at] = split(state.chosen);
  if (kind !== "cost" && at === layer) return undefined;
  return take(state.byHand[layer] ?? `e-${layer}-${Math.min(1, col(layer).n - 1)}-${Math.min(1, col(layer - 1).n - 1)}`);
}

function take(id) {
  state.chosen = id;
  if (id !== "cost") state.weight = id;
  focusOn(id, false);
}

function show(what) {
  state.shows = what;
  $(`shows-${what}`).checked = true;
}

function choose(id, announces = true) {
  state.chosen = id;
  if (id !== "cost") state.byHand[split(id)[1]] = state.weight = id;
  markChosen();
  placeTips(id);
  refreshPanel();
  if (announces) $("live").textContent = `Opened below: ${described(id)}`;
}

// One element of the drawing is in the order of Tab; the arrow keys move it.
function focusOn(id, moves = true) {
  parts.get(state.focus)?.group.setAttribute("tabindex", "-1");
  state.focus = id;
  const { group } = parts.get(id);
  label(id);
  group.setAttribute("tabindex", "0");
  if (moves) group.focus();
}

function neighbour(id, key) {
  const [kind, c, j, k] = split(id);
  const ends = { Home: "n-0-0", End: "cost" };
  if (key in ends) return ends[key];
  if (kind === "cost") return key === "ArrowLeft" ? `n-${last}-0` : id;
  const within = (n, count) => Math.max(0, Math.min(count - 1, n));
  if (kind === "n") {
    if (key === "ArrowRight") return c === last ? "cost" : `e-${c + 1}-${within(j, col(c + 1).n)}-${j}`;
    if (key === "ArrowLeft") return c === 0 ? id : `e-${c}-${j}-${within(j, col(c - 1).n)}`;
    return `n-${c}-${within(j + (key === "ArrowDown" ? 1 : -1), col(c).n)}`;
  }
  if (key === "ArrowRight") return `n-${c}-${j}`;
  if (key === "ArrowLeft") return `n-${c - 1}-${k}`;
  const wide = col(c - 1).n;
  const at = within(j * wide + k + (key === "ArrowDown" ? 1 : -1), wide * col(c).n);
  return `e-${c}-${Math.floor(at / wide)}-${at % wide}`;
}

// In a dense drawing the nearest weight is meant, not only the line exactly below the pointer.
function nearest(root, event) {
  const direct = event.target.closest("[data-id]");
  if (direct) return direct.dataset.id;
  const box = root.getBoundingClientRect();
  const [x, y] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  let best = { far: 8, id: null };
  for (const [id, { ends }] of parts) {
    if (!ends) continue;
    const [dx, dy] = [ends.x2 - ends.x1, ends.y2 - ends.y1];
    const t = Math.max(0, Math.min(1, ((x - ends.x1) * dx + (y - ends.y1) * dy) / (dx * dx + dy * dy)));
    const far = Math.hypot(x - ends.x1 - t * dx, y - ends.y1 - t * dy);
    if (far < best.far) best = { far, id };
  }
  return best.id;
}

// The names of the phases below the slider, each at its first step if there is room, in any case side by side.
function placePhases() {
  const room = $("phases").clientWidth;
  const buttons = [...$("phases").children];
  const gap = 6;
  let left = -8;
  for (const b of buttons) {
    left = Math.max(left, b.dataset.at * room - b.offsetWidth / 2);
    b.style.left = `${left}px`;
    left += b.offsetWidth + gap;
  }
  let right = room + 8;
  for (const b of buttons.reverse()) {
    right = Math.min(right, b.offsetLeft + b.offsetWidth);
    b.style.left = `${right - b.offsetWidth}px`;
    right -= b.offsetWidth + gap;
  }
}

// The drawing as it is now, as a file that stands alone: what the style sheet says is written into each element.
function pictureNow() {
  const root = $("drawing").firstElementChild;
  const copy = root.cloneNode(true);
  const said = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "stroke-linejoin", "stroke-opacity", "paint-order", "font-family", "font-size", "font-style", "font-weight", "text-anchor", "opacity", "visibility"];
  const [from, to] = [root.querySelectorAll("*"), copy.querySelectorAll("*")];
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of said) to[i].setAttribute(name, style.getPropertyValue(name));
    for (const name of [...to[i].getAttributeNames()].filter((n) => /^(class|style|role|tabindex|data-|aria-)/.test(n))) to[i].removeAttribute(name);
  });
  for (const name of [...copy.getAttributeNames()].filter((n) => /^(class|style|role|tabindex)/.test(n))) copy.removeAttribute(name);
  copy.prepend(svg("rect", { width, height, fill: getComputedStyle($("drawing")).backgroundColor }));
  return `${new XMLSerializer().serializeToString(copy)}\n`;
}

function savePicture() {
  const url = URL.createObjectURL(new Blob([pictureNow()], { type: "image/svg+xml" }));
  Object.assign(document.createElement("a"), { href: url, download: `step-${state.step + 1}.svg` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  $("live").textContent = `The picture of step ${state.step + 1} is saved`;
}

function options(select, count, name, chosen) {
  if (select.options.length !== count) select.replaceChildren(...Array.from({ length: count }, (_, i) => new Option(name(i), i)));
  else [...select.options].forEach((o, i) => (o.text = name(i)));
  select.value = chosen;
}

function fillChoice(c, j, k) {
  options($("choose-layer"), last, (i) => symbols.W(i + 1).text, c - 1);
  options($("choose-from"), col(c - 1).n, (i) => symbols.a(c - 1, i).text, k);
  options($("choose-to"), col(c).n, (i) => symbols.z(c, i).text, j);
}

function startNetwork() {
  planSteps();
  const root = draw();
  $("drawing").append(root);
  for (const words of document.querySelectorAll(".of-roomy")) words.hidden = !labelled;
  $("slider").max = steps.length - 1;
  $("phases").replaceChildren(
    ...PHASES.filter((p) => steps.some((s) => s.phase === p)).map((phase) => {
      const at = steps.findIndex((s) => s.phase === phase);
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: phase });
      button.dataset.phase = phase;
      button.dataset.at = at / (steps.length - 1);
      button.addEventListener("click", () => goTo(at));
      return button;
    }),
  );
  new ResizeObserver(placePhases).observe($("phases"));
  new ResizeObserver(() => ($("scrolls").hidden = $("drawing").scrollWidth <= $("drawing").clientWidth + 1)).observe($("drawing"));
  $("save").addEventListener("click", savePicture);
  $("thicker").textContent = roomy ? "thicker: larger" : "stronger: larger within its layer";
  options($("sample"), net.samples, (i) => `${i + 1} of ${net.batch}`, 0);
  $("samples").hidden = net.batch === 1;
  $("not-numbers").hidden = !net.columns.flatMap((q) => [q.W, q.dW, q.Wnext].flat(2)).includes("NaN");
  chooseForStep();
  fillChoice(...split(state.chosen).slice(1));
  show("weight");
  refresh();

  $("slider").addEventListener("input", (e) => goTo(e.target.value));
  $("previous").addEventListener("click", () => goTo(state.step - 1));
  $("next").addEventListener("click", () => goTo(state.step + 1));
  $("sample").addEventListener("change", (e) => {
    state.sample = Number(e.target.value);
    refresh(true);
  });
  for (const what of ["weight", "gradient"]) {
    $(`shows-${what}`).addEventListener("change", () => {
      show(what);
      refreshDrawing();
    });
  }
  for (const name of ["layer", "from", "to"]) {
    $(`choose-${name}`).addEventListener("change", () => {
      const c = Number($("choose-layer").value) + 1;
      const at = (id, count) => Math.min(Number($(id).value), count - 1);
      choose(`e-${c}-${at("choose-to", col(c).n)}-${at("choose-from", col(c - 1).n)}`);
    });
  }
  root.addEventListener("click", (e) => {
    const id = nearest(root, e);
    if (id === null) return;
    focusOn(id, false);
    choose(id);
  });
  root.addEventListener("pointermove", (e) => {
    const id = nearest(root, e);
    $("readout").textContent = described(id ?? state.chosen);
    placeTips(state.chosen, id);
  });
  root.addEventListener("pointerleave", () => {
    $("readout").textContent = described(state.chosen);
    placeTips(state.chosen);
  });
  // On the box around it: an SVG that listens to the focus takes it, too.
  $("drawing").addEventListener("focusin", (e) => {
    const id = e.target.closest("[data-id]")?.dataset.id;
    if (!id) return;
    $("readout").textContent = described(id);
    placeTips(state.chosen, id);
  });
  root.addEventListener("keydown", (e) => {
    if (["ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown", "Home", "End"].includes(e.key)) {
      e.preventDefault();
      focusOn(neighbour(state.focus, e.key));
    } else if (e.key === "Enter" || e.key === " ") {
      e.preventDefault();
      choose(state.focus);
    }
  });
  document.querySelector(".desk").addEventListener("click", (e) => {
    const to = e.target.closest(".goto");
    if (!to) return;
    if (to.dataset.id) {
      focusOn(to.dataset.id, false);
      choose(to.dataset.id);
    } else goTo(to.dataset.step);
    $("panel").focus();
  });
}
