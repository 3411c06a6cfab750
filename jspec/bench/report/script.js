"use strict";
(() => {
  const hints = new ResizeObserver((boxes) => {
    for (const { target } of boxes) {
      target.previousElementSibling.hidden = target.scrollWidth <= target.clientWidth;
    }
  });
  for (const box of document.querySelectorAll(".scroll")) hints.observe(box);

  function choose(passage, tokens, chosen, about) {
    const round = chosen.dataset.round;
    for (const token of tokens) {
      token.classList.toggle("same-round", token.dataset.round === round);
      token.setAttribute("aria-pressed", String(about === token.title && token === chosen));
      token.tabIndex = token === chosen ? 0 : -1;
    }
    for (const one of passage.querySelectorAll(".round")) one.hidden = one.dataset.round !== round;
    passage.querySelector(".about").textContent = about;
  }

  const passages = [...document.querySelectorAll(".passage")];
  for (const passage of passages) {
    const tokens = [...passage.querySelectorAll(".token")];
    const first = tokens[passage.querySelector(".tokens").dataset.first];
    choose(passage, tokens, first, "Choose a token to see the draft of its round.");
    passage.addEventListener("click", ({ target }) => {
      if (tokens.includes(target)) choose(passage, tokens, target, target.title);
    });
    passage.addEventListener("keydown", (event) => {
      const at = tokens.indexOf(event.target);
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1,
        Home: 0, End: tokens.length - 1, Enter: at, " ": at }[event.key];
      if (at < 0 || !tokens[to]) return;
      event.preventDefault();
      tokens[to].focus();
      choose(passage, tokens, tokens[to], tokens[to].title);
    });
  }
  document.querySelector("#tokens select")?.addEventListener("change", ({ target }) => {
    passages.forEach((passage, i) => { passage.hidden = i !== target.selectedIndex; });
  });
})();
