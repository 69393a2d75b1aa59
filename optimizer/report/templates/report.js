"use strict";
(() => {
  const tip = document.getElementById("tip");
  const place = (x, y) => {
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4)) + "px";
    tip.style.top = (y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18) + "px";
  };
  for (const mark of document.querySelectorAll(".mark")) {
    const title = mark.querySelector("title");
    const said = title.textContent;
    title.remove(); // else the browser shows its own beside ours
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", said);
    const show = (x, y) => { tip.textContent = said; tip.hidden = false; place(x, y); };
    const hide = () => { tip.hidden = true; };
    mark.addEventListener("pointermove", (event) => show(event.clientX, event.clientY));
    mark.addEventListener("pointerleave", hide);
    mark.addEventListener("focus", () => { const at = mark.getBoundingClientRect(); show(at.left + at.width / 2, at.top); });
    mark.addEventListener("blur", hide);
  }
  addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
