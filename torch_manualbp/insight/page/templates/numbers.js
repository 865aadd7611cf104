// ---- Numbers and symbols ---------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);
const RAISED = { 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹", "-": "⁻" };
const raised = (n) => [...String(n)].map((c) => RAISED[c]).join("");
const lowered = (n) => [...String(n)].map((c) => (c >= "0" && c <= "9" ? "₀₁₂₃₄₅₆₇₈₉"[c] : c)).join("");
const escaped = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

// The indices of a formula that is a text: C_i.
const indexed = (text) => escaped(text).replace(/_(\w)/g, "<sub>$1</sub>");

// JSON has neither NaN nor infinities, so they come as words.
const real = (v) => (typeof v === "string" ? Number(v) : v);

// Significant digits as Python's format ".10g" has them, with a true minus and a raised exponent.
function shown(value, digits = 10) {
  const v = real(value);
  if (v === null || v === undefined) return "–";
  if (Number.isNaN(v)) return "NaN";
  if (!Number.isFinite(v)) return v > 0 ? "∞" : "−∞";
  if (v === 0) return "0";
  const [mantissa, exponent] = Math.abs(v).toExponential(digits - 1).split("e");
  const power = Number(exponent);
  const stripped = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
  const body =
    power < -4 || power >= digits
      ? `${stripped(mantissa)}·10${raised(power)}`
      : stripped(Math.abs(v).toFixed(Math.max(0, digits - 1 - power)));
  return (v < 0 ? "−" : "") + body;
}

// A number in the page carries all of its digits, to be read by a script.
const cell = (value, digits = 10) => `<td data-value="${escaped(real(value) ?? "")}">${shown(value, digits)}</td>`;
const sum = (list) => list.reduce((total, v) => total + v, 0);

// A symbol as text, w₂₂⁽²⁾, and as MathML.
function symbol(letter, layer = null, index = null) {
  const up = layer === null ? "" : `<mrow><mo>(</mo><mn>${layer}</mn><mo>)</mo></mrow>`;
  const parts = index === null ? [] : [].concat(index);
  const comma = parts.some((p) => p > 9);
  const down = parts.length ? `<mrow>${parts.map((p) => (typeof p === "number" ? `<mn>${p}</mn>` : `<mi>${p}</mi>`)).join(comma ? '<mo lspace="0" rspace="0">,</mo>' : "")}</mrow>` : "";
  const base = `<mi>${letter}</mi>`;
  const math = up && down ? `<msubsup>${base}${down}${up}</msubsup>` : up ? `<msup>${base}${up}</msup>` : down ? `<msub>${base}${down}</msub>` : base;
  const text = letter + (parts.length ? lowered(parts.join(comma ? "," : "")) : "") + (layer === null ? "" : `⁽${raised(layer)}⁾`);
  return { math, text };
}
const partial = (s) => ({
  math: `<mfrac><mrow><mi>∂</mi><mi>C</mi></mrow><mrow><mi>∂</mi>${s.math}</mrow></mfrac>`,
  flat: `<mrow><mi>∂</mi><mi>C</mi><mo lspace="0" rspace="0">/</mo><mi>∂</mi>${s.math}</mrow>`, // among words
  text: `∂C/∂${s.text}`,
});
const slope = (s) => ({
  math: `<mrow><mi>f</mi><mo form="postfix" lspace="0.1em" rspace="0">′</mo><mo stretchy="false">(</mo>${s.math}<mo stretchy="false">)</mo></mrow>`,
  text: `f'(${s.text})`,
});
const bracketed = (s) => ({ math: `<mrow><mo stretchy="false">(</mo>${s.math}<mo stretchy="false">)</mo></mrow>`, text: `(${s.text})` });
const transposed = (s) => ({ math: `<msup>${s.math}<mi>T</mi></msup>`, text: `${s.text}ᵀ` });
const op = (sign) => `<mo>${sign}</mo>`;
const inline = (...parts) => `<math>${parts.map((p) => p.flat ?? p.math ?? p).join("")}</math>`;
const display = (...parts) => `<div class="formula"><math display="block">${parts.map((p) => p.math ?? p).join("")}</math></div>`;
