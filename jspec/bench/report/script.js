"use strict";
(() => {
  const holder = document.getElementById("pictures");
  if (!holder) return;
  const pictures = JSON.parse(holder.textContent);
  const tip = document.getElementById("tip");
  const tree = document.getElementById("tree");
  const title = document.getElementById("tree-title");
  const missing = document.querySelector("#tokens .missing");
  const passages = [...document.querySelectorAll(".passage")];
  const choices = ["contestant", "text"].map((name) => document.getElementById("choose-" + name));
  let shown = 0;

  const spansOf = (place) => [...passages[place].querySelectorAll(".token")];

  function show() {
    const [contestant, where] = choices.map((choice) => choice.value);
    shown = pictures.findIndex((p) => p.contestant === contestant && p.where === where);
    passages.forEach((passage, place) => { passage.hidden = place !== shown; });
    missing.hidden = shown >= 0;
    tip.hidden = true;
    tree.replaceChildren();
    title.textContent = "Choose a token to see the draft of its round.";
    if (shown >= 0) startWith(pictures[shown]);
  }

  // The fullest round is the best first sight of what a draft is.
  function startWith(picture) {
    const rounds = Object.entries(picture.rounds).filter(([, r]) => r.nodes.length);
    if (!rounds.length) return;
    const [best] = rounds.reduce((a, b) => (b[1].kept > a[1].kept ? b : a));
    const index = picture.tokens.findIndex((token) => String(token[5]) === best);
    if (index >= 0) choose(spansOf(shown)[index], false);
  }

  function words(token) {
    const [text, depth, rank, logprob, gap, round] = token;
    const lines = ["“" + text + "”"];
    lines.push(depth ? "drafted, kept at depth " + depth : "the target's own");
    if (depth && rank !== null) lines.push("the drafter's choice no. " + (rank + 1));
    if (logprob !== null) lines.push("probability " + (100 * Math.exp(logprob)).toPrecision(3) + " %");
    if (gap !== null) lines.push("score above the runner-up " + gap.toFixed(2));
    if (round !== null) lines.push("round " + round);
    return lines.join("\n");
  }

  function explain(span) {
    const token = pictures[shown].tokens[Number(span.dataset.index)];
    tip.textContent = words(token);
    tip.hidden = false;
    span.setAttribute("aria-describedby", "tip");
    const box = span.getClientRects()[0] || span.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    tip.style.left = "0";
    const left = Math.max(8, Math.min(box.left, wide - tip.offsetWidth - 8));
    const above = box.top - tip.offsetHeight - 8;
    const top = above > 0 ? above : box.bottom + 8;
    tip.style.left = left + window.scrollX + "px";
    tip.style.top = top + window.scrollY + "px";
  }

  function hide(span) {
    tip.hidden = true;
    span.removeAttribute("aria-describedby");
  }

  function choose(span, isAsked = true) {
    const picture = pictures[shown];
    const round = picture.tokens[Number(span.dataset.index)][5];
    for (const other of spansOf(shown)) {
      const same = picture.tokens[Number(other.dataset.index)][5] === round;
      other.classList.toggle("same-round", same);
      other.setAttribute("aria-pressed", String(other === span && isAsked));
    }
    draw(round, picture.rounds[String(round)]);
    if (isAsked) explain(span);
  }

  function svg(name, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  const dots = (spaces) => "·".repeat(spaces.length);

  function draw(round, entry) {
    if (!entry || !entry.nodes.length) {
      title.textContent = "Round " + round + ": nothing was drafted; the token is the target's own.";
      tree.replaceChildren();
      return;
    }
    const nodes = entry.nodes;
    const drafted = nodes.filter((node) => node[1] > 0).length;
    title.textContent = "Round " + round + ": " + entry.kept + " of " + drafted +
      " drafted token" + (drafted === 1 ? "" : "s") + " kept, then one of the target's own.";
    const cut = (text) => (text.length > 12 ? text.slice(0, 11) + "…" : text).replace(/^ +/, dots);
    const wide = Math.max(...nodes.map((n) => cut(n[0]).length)) * 7.4 + 16;
    const step = wide + 26, tall = 32;
    const first = Math.min(...nodes.map((n) => n[1]));
    const stem = first > 0 ? 22 : 6;
    const x = (n) => stem + (n[1] - first) * step;
    const y = (n) => 6 + n[2] * tall;
    const edges = [], boxes = [];
    for (const node of nodes) {
      const [text, depth, , parent, kept] = node;
      const above = nodes[parent];
      const state = kept ? "kept" : depth > 0 ? "refused" : "root";
      const from = above ? [x(above) + wide, y(above) + 12] : first > 0 ? [10, 18] : null;
      if (from) {
        const to = [x(node), y(node) + 12], middle = (from[0] + to[0]) / 2;
        const d = `M${from}C${middle},${from[1]} ${middle},${to[1]} ${to}`;
        edges.push(svg("path", { d, class: state }));
      }
      boxes.push(svg("g", { class: state },
        svg("rect", { x: x(node), y: y(node), width: wide, height: 24, rx: 5 }),
        svg("text", { x: x(node) + wide / 2, y: y(node) + 16, "text-anchor": "middle" }, cut(text)),
        svg("title", {}, text + (kept ? ", kept at depth " : ", at depth ") + depth)));
    }
    if (first > 0) boxes.push(svg("circle", { cx: 8, cy: 18, r: 4, fill: "var(--soft)" }));
    const width = Math.max(...nodes.map(x)) + wide + 6;
    const height = Math.max(...nodes.map(y)) + 30;
    edges.sort((a, b) => (a.getAttribute("class") === "kept") - (b.getAttribute("class") === "kept"));
    tree.replaceChildren(svg("svg", {
      viewBox: `0 0 ${width} ${height}`, width, height, role: "img",
      "aria-label": title.textContent + " Nodes: " +
        nodes.map((n) => n[0] + (n[4] ? " (kept)" : "")).join(", "),
    }, ...edges, ...boxes));
  }

  function move(span, key) {
    const spans = spansOf(shown), at = spans.indexOf(span);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
      Home: 0, End: spans.length - 1 }[key];
    if (to === undefined || !spans[to]) return false;
    span.tabIndex = -1;
    spans[to].tabIndex = 0;
    spans[to].focus();
    return true;
  }

  const tokenOf = (event) => event.target.closest(".tokens .token");
  for (const passage of passages) {
    passage.addEventListener("pointerover", (e) => { const t = tokenOf(e); if (t) explain(t); });
    passage.addEventListener("pointerout", (e) => {
      const t = tokenOf(e);
      if (t && e.pointerType === "mouse") hide(t);
    });
    passage.addEventListener("focusin", (e) => { const t = tokenOf(e); if (t) explain(t); });
    passage.addEventListener("focusout", (e) => { const t = tokenOf(e); if (t) hide(t); });
    passage.addEventListener("click", (e) => { const t = tokenOf(e); if (t) choose(t); });
    passage.addEventListener("keydown", (e) => {
      const t = tokenOf(e);
      if (!t) return;
      if (e.key === "Escape") hide(t);
      else if (e.key === "Enter" || e.key === " ") { e.preventDefault(); choose(t); }
      else if (move(t, e.key)) e.preventDefault();
    });
  }
  for (const choice of choices) choice.addEventListener("change", show);
  show();
})();
