"use strict";
const about = JSON.parse(document.getElementById("about").textContent), OF = about.of;
const main = document.getElementById("main"), tip = document.getElementById("tip");
const index = about.index, rowOf = new Map(index.n.map((n, i) => [n, i]));

// ---- small makers: text only ever enters the page as text

const SVG = ["svg", "rect", "line", "text", "circle", "path", "title"];

function make(name, attributes, ...inside) {
  const svg = SVG.includes(name) || (name === "a" && inside.some(part => part instanceof SVGElement));
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  for (const part of inside.flat(Infinity)) if (part !== null && part !== undefined) node.append(part);
  return node;
}

function short(x, digits = 3) {
  if (x === null || x === undefined) return "–";
  if (x === 0) return "0";
  const size = Math.abs(x);
  return size >= 1e5 || size < 1e-3 ? x.toExponential(2) : String(+x.toPrecision(digits));
}
const share = x => (x === null ? "–" : x === 0 ? "0" : x >= 0.1 ? (100 * x).toFixed(0) : x >= 0.001 ? +(100 * x).toPrecision(2) : (100 * x).toExponential(1)) + " %";

const shown = new Map([["\n", "↵"], ["\t", "⇥"], ["\r", "␍"], ["\0", "␀"]]);
// control and direction characters would act on the page, so they are named
const visible = text => text.replace(/[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
  c => shown.get(c) ?? "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
function spelled(ids) {
  // a character whose bytes several tokens share stands at the last of them and a dot at the others; bytes of none are named
  const out = ids.map(() => ""), bytes = [], owner = [];
  const flush = () => {
    for (let i = 0; i < bytes.length;) {
      const size = [[0xf0, 4], [0xe0, 3], [0xc0, 2], [0x80, 0], [0, 1]].find(([lead]) => bytes[i] >= lead)[1];
      let text = null;
      try { if (size && i + size <= bytes.length) text = utf8.decode(Uint8Array.from(bytes.slice(i, i + size))); } catch { text = null; }
      if (text === null) { out[owner[i]] += "\\x" + bytes[i].toString(16).padStart(2, "0"); i++; continue; }
      const last = owner[i + size - 1];
      for (const t of new Set(owner.slice(i, i + size))) out[t] += t === last ? visible(text) : "‧";
      i += size;
    }
    bytes.length = owner.length = 0;
  };
  ids.forEach((id, t) => {
    const piece = about.tokens[id] ?? `#${id}`;
    if (typeof piece === "string") { flush(); out[t] = visible(piece); }
    else for (const byte of piece) { bytes.push(byte); owner.push(t); }
  });
  flush();
  return out;
}
const written = id => spelled([id])[0];
// tokens stand from left to right in every script, each a text of its own, and so do a token's parts: "dir" of their elements
// what is quoted in an explanation keeps its place in the list, whichever way it is written
const isolated = text => make("bdi", {}, visible(text).split(/('[^']*'|"[^"]*")/).map((part, i) => i % 2 ? make("bdi", {}, part) : part));
const quoted = id => written(id).replace(/ /g, "␣");

// ---- records: packed one by one, unpacked when they are looked at

async function record(n) {
  const packed = document.getElementById("f" + n);
  if (!packed) return null;
  const bytes = Uint8Array.from(atob(packed.textContent), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function place(n) {
  const file = (about.files || []).find(f => n >= f[0] && n <= f[1]);
  return (file && file[2] !== about.file ? "./" + encodeURIComponent(file[2]) : "") + "#" + n;
}

function neighbour(n, step) {
  const here = index.n.indexOf(n), files = about.files || [];
  if (here < 0) return null;
  const own = files.findIndex(f => f[2] === about.file), file = own < 0 ? undefined : files[own + step];
  return index.n[here + step] ?? (file ? file[step > 0 ? 0 : 1] : null);
}

// ---- pictures

function bars(histogram, label, width = 360, height = 90) {
  const { low, high, counts } = histogram, most = Math.max(...counts, 1), step = (width - 10) / counts.length;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height + 18}`, width, role: "img", "aria-label": label });
  counts.forEach((count, i) => {
    const from = low + (high - low) * i / counts.length, to = low + (high - low) * (i + 1) / counts.length;
    const tall = count ? Math.max(1, height * count / most) : 0;
    svg.append(make("rect", { class: "bar", x: 5 + i * step, width: step * 0.9, y: height - tall, height: tall },
      make("title", {}, `${short(from)} to ${short(to)}: ${count}`)));
  });
  svg.append(make("line", { class: "axis", x1: 5, x2: width - 5, y1: height, y2: height }));
  if (low < 0 && high > 0) {
    const zero = 5 + (width - 10) * -low / (high - low);
    svg.append(make("line", { class: "axis", x1: zero, x2: zero, y1: 0, y2: height, "stroke-dasharray": "2 3" }));
    if (zero > 50 && zero < width - 50) svg.append(make("text", { x: zero, y: height + 13, "text-anchor": "middle" }, "0"));
  }
  svg.append(make("text", { x: 5, y: height + 13 }, short(low)),
    make("text", { x: width - 5, y: height + 13, "text-anchor": "end" }, short(high)),
    make("text", { x: width - 5, y: 10, "text-anchor": "end" }, `at most ${most} a bar`));
  return svg;
}

function curve(xs, ys, label, width = 360, height = 90) {
  const good = xs.map((x, i) => [x, ys[i]]).filter(p => p[1] !== null);
  const range = v => [Math.min(...v), Math.max(...v)], [x0, x1] = range(good.map(p => p[0])), [y0, y1] = range(good.map(p => p[1]));
  const left = 52, x = v => left + (width - left - 5) * (v - x0) / (x1 - x0 || 1), y = v => 5 + (height - 10) * (1 - (v - y0) / (y1 - y0 || 1));
  const svg = make("svg", { viewBox: `0 0 ${width} ${height + 18}`, width, role: "img", "aria-label": label });
  svg.append(make("path", { class: "curve", d: "M" + good.map(p => `${x(p[0])},${y(p[1])}`).join("L") }));
  for (const p of good) svg.append(make("circle", { class: "dot", cx: x(p[0]), cy: y(p[1]), r: 3 }, make("title", {}, `${short(p[0])}: ${short(p[1])}`)));
  svg.append(make("line", { class: "axis", x1: left, x2: width - 5, y1: height, y2: height }));
  svg.append(make("text", { x: left, y: height + 13 }, short(x0)), make("text", { x: width - 5, y: height + 13, "text-anchor": "end" }, short(x1)),
    make("text", { x: left - 6, y: 11, "text-anchor": "end" }, short(y1)), make("text", { x: left - 6, y: height - 1, "text-anchor": "end" }, short(y0)));
  return svg;
}

// ---- the tip

function point(event, lines) {
  tip.replaceChildren(...lines);
  tip.classList.add("shown");
  const box = event.currentTarget.getBoundingClientRect(), own = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(box.left, innerWidth - own.width - 8)) + "px";
  tip.style.top = (box.bottom + own.height + 8 < innerHeight ? box.bottom + 6 : Math.max(4, box.top - own.height - 6)) + "px";
}
// it is never hidden from screen readers, which say what changes in it
const unpoint = () => { tip.classList.remove("shown"); };
addEventListener("wheel", unpoint, { passive: true });

// ---- examples

const NEAR = about.near;

function line(r, e, i, top, scale) {
  const at = e.at[i], ids = e.ids[i], text = spelled(ids), node = make("p", { class: "line", tabindex: 0, role: "group", "aria-label": `example, arrow keys go through its ${OF === "token" ? "tokens" : "generators"}` });
  let wide = false;
  const draw = () => {
    node.replaceChildren();
    const from = wide ? 0 : Math.max(0, at - NEAR), to = wide ? ids.length : Math.min(ids.length, at + NEAR + 1);
    for (let t = from; t < to; t++) {
      const act = e.acts[i][t], near = t - at + NEAR, inside = near >= 0 && near <= 2 * NEAR && e.clean;
      const effect = inside ? e.effect[i][near] : null;
      const token = make("bdi", { class: t === at ? "here" : null, dir: "ltr", tabindex: -1, "data-act": act, "data-effect": effect });
      token.textContent = text[t];
      if (act) token.style.background = `rgba(var(--act), ${(0.1 + 0.5 * Math.min(1, Math.abs(act) / (top || 1))).toFixed(3)})`;
      if (effect && Math.abs(effect) >= 0.02 * scale) {
        const strength = Math.round(100 * Math.min(1, 0.25 + Math.abs(effect) / scale));
        token.style.borderBottomColor = `color-mix(in srgb, var(${effect > 0 ? "--helps" : "--hurts"}) ${strength}%, transparent)`;
      }
      const say = event => point(event, told(r, e, i, t, near, inside, act, effect));
      token.addEventListener("mouseenter", say);
      token.addEventListener("focus", say);
      token.addEventListener("mouseleave", unpoint);
      token.addEventListener("blur", unpoint);
      node.append(token);
    }
    if (ids.length > Math.min(ids.length, at + NEAR + 1) - Math.max(0, at - NEAR)) node.append(make("button", { onclick: () => { wide = !wide; draw(); node.querySelector("button").focus(); }, "aria-expanded": String(wide) }, wide ? "less" : "more"));
    if (e.again[i]) node.append(make("span", { class: "again", title: `this ${OF} stands in a group above, too` }, "↑ shown above"));
  };
  node.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const tokens = [...node.querySelectorAll("bdi")], here = tokens.indexOf(document.activeElement);
    tokens[(here < 0 ? (step > 0 ? 0 : tokens.length - 1) : Math.max(0, Math.min(tokens.length - 1, here + step)))].focus();
    event.preventDefault();
  });
  draw();
  return node;
}

function told(r, e, i, t, near, inside, act, effect) {
  const rows = [OF === "token" ? ["token", `${quoted(e.ids[i][t])} (${e.ids[i][t]})`] : ["generator", quoted(e.ids[i][t])], ["activation", short(act)]];
  if (effect !== null) {
    rows.push(["its loss without the feature", (effect >= 0 ? "+" : "") + short(effect) + " nats"]);
    rows.push(["its probability with, without", `${short(Math.exp(e.clean[i][near]))}, ${short(Math.exp(e.clean[i][near] - effect))}`]);
    const direct = e.direct[i][near];
    if (direct !== null) rows.push(["by the direct path alone", (direct >= 0 ? "+" : "") + short(direct) + " nats"]);
  } else if (inside) rows.push(["its loss", "nothing is said before it"]);
  if (OF !== "token") rows.push([OF, e.document[i]]);
  else rows.push(["text", `${about.documents?.[e.document[i]] ?? "document " + e.document[i]}, token ${(e.start ? e.start[i] : 0) + e.place[i] + t - e.at[i]}`]);
  const lines = [make("table", {}, rows.map(([a, b]) => make("tr", {}, make("td", {}, a), make("td", {}, make("bdi", { dir: a === "token" ? "ltr" : null }, b)))))];
  if (t === e.at[i] && e.up && e.acts[i][t]) for (const [name, what] of [["up", "votes up what follows"], ["down", "votes down"]]) {
    const [ids, by] = [e[name][0][i], e[name][1][i]];
    lines.push(make("div", {}, what + ": ", ids.slice(0, 5).map((id, k) => [make("bdi", { dir: "ltr" }, quoted(id)), ` ${by[k] > 0 ? "+" : ""}${short(by[k], 2)}${k < 4 ? ", " : ""}`])));
  }
  return lines;
}

// ---- views

function tokens(title, pair) {
  const most = Math.max(...pair[1].map(Math.abs), 1e-9);
  return make("table", {}, make("caption", {}, title), pair[0].map((id, i) => make("tr", {},
    make("td", {}, make("bdi", { dir: "ltr", style: `background: color-mix(in srgb, var(${pair[1][i] < 0 ? "--hurts" : "--helps"}) ${Math.round(45 * Math.abs(pair[1][i]) / most)}%, transparent)` }, quoted(id))),
    make("td", { class: "number", "data-id": id, "data-value": pair[1][i] }, (pair[1][i] > 0 ? "+" : "") + short(pair[1][i])))));
}

function others(title, heads, columns, links) {
  return make("table", {}, make("caption", {}, title),
    make("tr", {}, heads.map(h => make("th", {}, h))),
    columns[0].map((_, i) => make("tr", {}, columns.map((column, k) => make("td", { class: k ? "number" : null },
      links && k === 0 ? make("a", { href: place(column[i]) }, String(column[i])) : k ? short(column[i]) : String(column[i]))))));
}

// F1 and its parts; those that are undefined, and why
function scores(why, named) {
  const judged = why.detection === undefined ? "" : `the judge's balanced accuracy${named ? " for the label above" : ""}: detection ${short(why.detection, 2)}, fuzzing ${short(why.fuzzing, 2)}`;
  if (why.f1 === null) return [why.text ? `no score: silent on ${why.of}` : "", judged].filter(part => part).join("; ");
  const part = (name, none) => `${name} ${why[name] === null ? `undefined, ${none}` : short(why[name], 2)}`;
  return [`F1 ${short(why.f1, 2)} (${part("precision", "it holds nowhere there")}, ${part("recall", "it is silent there")}${why.auroc === null ? "" : `, AUROC ${short(why.auroc, 2)}`}) on ${why.of}`,
    why.named_f1 === undefined ? "" : `of the members that are named here alone, F1 ${short(why.named_f1, 2)}`, judged].filter(part => part).join("; ");
}

async function feature(n) {
  const r = await record(n);
  if (+location.hash.slice(1) !== n) return;  // another was asked for meanwhile
  if (!r) {
    document.title = `no feature ${n} · ${about.title}`;
    main.replaceChildren(make("p", {}, place(n) !== "#" + n ? make("a", { href: place(n) }, `Feature ${n} is in another file.`) : `There is no feature ${n} here: they are listed in the index.`));
    return;
  }
  const [before, after] = [neighbour(n, -1), neighbour(n, 1)];
  const side = make("section", { "aria-label": "About the feature" });
  side.append(make("h2", {}, `Feature ${n}`, r.name ? make("bdi", {}, `: ${visible(r.name)}`) : ""),
    make("p", { class: "tools" }, before !== null ? make("a", { href: place(before), rel: "prev" }, "previous") : "", " ", after !== null ? make("a", { href: place(after), rel: "next" }, "next") : ""));
  if (r.why) side.append(make("p", {}, isolated(r.why.text || "no predicate fits"), " ", make("span", { class: "note" }, scores(r.why, r.name))));
  const dead = !r.on;
  side.append(make("p", {}, dead ? make("strong", {}, `Dead: silent on all ${OF}s. `) : `On at ${share(r.density)} of the ${OF}s (${r.on}). Largest activation ${short(r.max)}, mean ${short(r.mean)}. `,
    r.found ? make("span", { class: "badge" }, `found in ${r.found[0]} of ${r.found[1]} other SAEs`) : "",
    r.effect !== undefined && r.effect !== null ? make("span", { class: "note" }, ` Without it the loss near its largest examples changes by ${r.effect > 0 ? "+" : ""}${short(r.effect)} nats a token.`) : ""));
  if (r.histogram) side.append(make("h3", {}, "Activations where it is on"), bars(r.histogram, "histogram of activations"));
  if (r.positive) side.append(make("h3", {}, "Votes on the next token"), make("div", { class: "pair" }, tokens("down", r.negative), tokens("up", r.positive)),
    bars(r.votes, "histogram of votes on all tokens"));
  if (r.no_votes) side.append(make("h3", {}, "Votes on the next token"), make("p", { class: "note" }, `None: ${r.no_votes}.`));
  if (r.weights) side.append(make("h3", {}, "Neurons"), others("by weight of the direction", ["neuron", "weight", "share of all weight"], r.weights));
  if (r.neurons) side.append(r.weights ? "" : make("h3", {}, "Neurons"), others("by correlation", ["neuron", "Pearson's r", "cosine"], r.neurons));
  for (const [name, pair] of Object.entries(r.others || {})) side.append(make("h3", {}, `Closest features of ${name}`), others("by correlation of activations", ["feature", "Pearson's r"], pair));
  if (r.confusion) side.append(make("h3", {}, "Against the generator"), make("table", {}, Object.entries(r.confusion).map(([a, b]) => make("tr", {}, make("td", {}, a), make("td", { class: "number" }, typeof b === "string" ? b : short(b))))));
  if (r.dose) {
    side.append(make("h3", {}, "Steering"), make("p", { class: "note" }, "By how much the log-probability of its five strongest votes changes when the feature is set to a multiple of its largest activation, and KL to the clean model."),
      curve(r.dose.strengths, r.dose.wanted, "change of log-probability by strength"), curve(r.dose.strengths, r.dose.kl, "KL divergence by strength"));
  }
  const body = make("section", { "aria-label": "Examples" });
  if (r.examples.clean) body.append(make("p", { class: "legend" },
    "Orange: activation. Underlined is the token that is predicted: ", make("span", { class: "key", style: "border-color: var(--helps)" }),
    " blue where taking the feature out raises the loss of that token (the feature helps), ", make("span", { class: "key", style: "border-color: var(--hurts)" }), " red where it lowers it. ",
    "The feature is taken out of every token of the text (beginnings of texts, which are left out everywhere, aside), what the SAE does not explain stays, later layers are run again; effects are shown for the token in bold and four on either side, underlined from a fiftieth of the largest here on."));
  const e = r.examples, effects = (e.effect || []).flat().map(x => Math.abs(x || 0));
  const scale = Math.max(0.05, ...effects);
  for (const [name, low, high, count, mass, first, last] of r.groups) {
    const said = name === "silent" ? "the feature is off" : name === "random" ? `any ${OF} on which it is on`
      : `${short(low)} to ${short(high)}: ${share(count)} of the ${OF}s on which it is on, ${share(mass)} of its activation`;
    const group = make("section", { class: "group" }, make("h3", {}, name, make("span", {}, said)));
    for (let i = first; i < last; i++) group.append(line(r, e, i, r.max, scale));
    if (first === last) group.append(make("p", { class: "note" }, `no ${OF}`));
    body.append(group);
  }
  if (dead) body.prepend(make("p", {}, `A dead feature has no examples of its own; silent ${OF}s are shown.`));
  main.replaceChildren(make("div", { class: "feature" }, side, body));
  document.title = `${n}${r.name ? " " + visible(r.name) : ""} · ${about.title}`;
}

const TEXTS = ["name", "text"], words = i => TEXTS.map(key => (index[key] && index[key][i]) || "");
const called = i => visible(words(i).find(text => text) || "");
const COLUMNS = [["n", "feature"], ["name", "label"], ["text", "explanation"], ["f1", "its F1"], ["density", "density"], ["max", "largest"], ["stability", "stability"], ["effect", "loss effect"]];
let sorted = { key: "n", down: false };

function listing() {
  const keys = COLUMNS.filter(([key]) => index[key]), box = make("input", { id: "search", type: "search", placeholder: "search", "aria-label": "Search in numbers, labels and explanations" });
  const body = make("tbody"), head = make("tr"), count = make("p", { class: "note", role: "status" });
  let most = 300;
  const fill = () => {
    const wanted = box.value.toLowerCase();
    let rows = index.n.map((_, i) => i).filter(i => !wanted || `${index.n[i]} ${words(i).join(" ")}`.toLowerCase().includes(wanted));
    const value = i => index[sorted.key][i], turn = sorted.down ? -1 : 1;
    rows.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const none = v => v === null || v === "";
      if (none(x) || none(y)) return none(x) - none(y);
      return turn * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
    body.replaceChildren(...rows.slice(0, most).map(i => make("tr", {}, keys.map(([key]) => key === "n"
      ? make("td", { class: "number" }, make("a", { href: place(index.n[i]) }, String(index.n[i])))
      : TEXTS.includes(key) ? make("td", {}, isolated(index[key][i] || "")) : make("td", { class: "number" }, short(index[key][i]))))));
    count.replaceChildren(`${rows.length} features${rows.length > most ? `, the first ${most} shown ` : ""}`);
    if (rows.length > most) count.append(make("button", { onclick: () => {
      const before = most;
      most *= 4;
      fill();
      body.children[before].querySelector("a").focus();
    } }, "more"));
    for (const th of head.children) th.setAttribute("aria-sort", th.dataset.key === sorted.key ? (sorted.down ? "descending" : "ascending") : "none");
  };
  for (const [key, name] of keys) head.append(make("th", { class: TEXTS.includes(key) ? null : "number", "data-key": key, scope: "col" }, make("button", { onclick: () => {
    sorted = { key, down: sorted.key === key ? !sorted.down : key !== "n" && !TEXTS.includes(key) };
    fill();
  } }, name)));
  box.addEventListener("input", fill);
  main.replaceChildren(make("h2", {}, "Features"), make("p", { class: "note" }, about.note || ""), make("p", {}, box), count, make("table", { class: "index" }, make("thead", {}, head), body));
  fill();
  document.title = about.title;
}

function map() {
  if (!index.x) { main.replaceChildren(make("p", {}, "There is no map in this file.")); return; }
  const size = 640, range = v => [Math.min(...v), Math.max(...v)], [x0, x1] = range(index.x), [y0, y1] = range(index.y);
  const svg = make("svg", { viewBox: `0 0 ${size} ${size}`, width: size, role: "group", "aria-label": "map of directions; the index lists the same features" });
  const points = index.n.map((_, i) => [10 + (size - 20) * (index.x[i] - x0) / (x1 - x0 || 1), 10 + (size - 20) * (1 - (index.y[i] - y0) / (y1 - y0 || 1))]);
  index.n.forEach((n, i) => svg.append(make("a", { href: place(n), tabindex: -1, "aria-label": `feature ${n}` },
    make("circle", { class: "dot on", r: 4, cx: points[i][0], cy: points[i][1] }, make("title", {}, `${n} ${called(i)}`)))));
  // where there are few, their names beside them, each at the first of four places that is free; else its number; else none
  const taken = points.map(([x, y]) => [x - 5, y - 5, x + 5, y + 5]);
  const put = (name, x, y) => [["start", 7, 4], ["end", -7, 4], ["middle", 0, -8], ["middle", 0, 16]].some(([anchor, dx, dy]) => {
    const wide = 6.5 * name.length, left = x + dx - wide * { start: 0, middle: .5, end: 1 }[anchor], box = [left, y + dy - 10, left + wide, y + dy + 2];
    if (left < 0 || box[2] > size || box[1] < 0 || box[3] > size || taken.some(b => b[0] < box[2] && box[0] < b[2] && b[1] < box[3] && box[1] < b[3])) return false;
    taken.push(box);
    svg.append(make("text", { x: x + dx, y: y + dy, "text-anchor": anchor, "aria-hidden": "true" }, name));
    return true;
  });
  if (points.length <= 60) points.forEach(([x, y], i) => {
    const text = called(i).replace(/ \(the best detector.*$/, ""), brief = text.length > 26 ? `${index.n[i]} ${text.slice(0, 21)}…` : text;
    (brief && put(brief, x, y)) || put(`${index.n[i]}`, x, y);
  });
  main.replaceChildren(make("h2", {}, "Map of directions"), make("p", { class: "note" }, about.map || ""), svg);
}

function prompts() {
  const list = about.prompts || [];
  if (!list.length) { main.replaceChildren(make("p", {}, "There is no text in this file.")); return; }
  const panel = make("div", { id: "panel", role: "status" }, make("p", { class: "note" }, "Choose a token to see the features that are on there."));
  const parts = list.map(text => [text, spelled(text.ids)]).map(([text, words]) => make("div", {}, make("h3", {}, text.name), make("p", { class: "line" }, text.ids.map((id, t) => {
    const features = text.features[t];
    const token = make("bdi", { class: "on", dir: "ltr", tabindex: 0, role: "button" });
    token.textContent = words[t];
    if (features.length) token.style.background = `rgba(var(--act), ${(0.1 + 0.6 * Math.min(1, features[0][2])).toFixed(3)})`;
    const choose = () => panel.replaceChildren(make("h3", {}, make("bdi", { dir: "ltr" }, quoted(id)), ` at place ${t}`), features.length
      ? make("table", {}, make("tr", {}, ["feature", "activation", "of its largest", "explanation"].map(h => make("th", {}, h))), features.map(([n, act, part]) => make("tr", {},
        make("td", {}, make("a", { href: place(n) }, String(n))), make("td", { class: "number" }, short(act)), make("td", { class: "number" }, share(part)),
        make("td", {}, isolated(rowOf.has(n) ? called(rowOf.get(n)) : "")))))
      : make("p", {}, "No feature of this file is on here."));
    token.addEventListener("click", choose);
    token.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { choose(); event.preventDefault(); } });
    return token;
  }))));
  main.replaceChildren(make("h2", {}, "Texts and their features"), make("div", { class: "feature" }, make("section", { "aria-label": "Features of the token" }, panel), make("section", { "aria-label": "Texts" }, parts)));
}

// ---- ways through

if (about.home !== about.file) for (const link of document.querySelectorAll("nav a")) link.href = "./" + encodeURIComponent(about.home) + link.getAttribute("href");

async function route() {
  unpoint();
  const where = location.hash.slice(1);
  if (/^\d+$/.test(where)) await feature(+where);
  else if (where === "map") map();
  else if (where === "prompts") prompts();
  else listing();
  if (["map", "prompts"].includes(where)) document.title = `${where === "map" ? "Map" : "Texts"} · ${about.title}`;
  if (where === "search") document.getElementById("search").focus();
  main.dataset.view = where || "index";
}
document.querySelector(".skip").addEventListener("click", event => { main.focus(); event.preventDefault(); });
addEventListener("hashchange", async () => {
  await route();
  scrollTo(0, 0);
  if (location.hash !== "#search") main.focus({ preventScroll: true });
});
document.getElementById("go").addEventListener("submit", event => {
  event.preventDefault();
  const n = document.getElementById("number").value.trim();
  if (/^\d+$/.test(n)) location.href = place(+n);
});
addEventListener("keydown", event => {
  if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = { j: 1, k: -1 }[event.key];
  const to = step && /^#\d+$/.test(location.hash) ? neighbour(+location.hash.slice(1), step) : null;
  if (to !== null) location.href = place(to);
  else if (event.key === "/") {
    event.preventDefault();
    const box = document.getElementById("search");
    if (box) box.focus(); else location.href = (about.home === about.file ? "" : "./" + encodeURIComponent(about.home)) + "#search";
  }
});
route();
